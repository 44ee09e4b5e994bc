#!/usr/bin/env bash
# Makes .venv hold what the named extras need, once per change of what they need; the other scripts source it.
# usage: . scripts/setup.sh; ensure_venv local,dev     or     ./scripts/setup.sh local,dev
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Whether a set of extras has all of another; what pyproject.toml calls local brings five others.
includes() {
  local has=,${1//local/local,edge,cloud,console,identity,simulation}, wanted
  for wanted in ${2//,/ }; do
    [[ $has == *,"$wanted",* ]] || return 1
  done
}

ensure_venv() {
  local extras=$1 python="" candidate stamp larger
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "fedgrass needs Python 3.10 to 3.13 with the venv module; none was found on the PATH." >&2
    exit 1
  fi
  stamp=.venv/.fedgrass-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
  for larger in "$stamp"-*; do
    [ -e "$larger" ] && includes "${larger#"$stamp"-}" "$extras" && return
  done
  echo "Setting up .venv with $extras (once; takes a few minutes on a slow link) …" >&2
  # An interrupted set-up may have left a .venv without pip.
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]" 2> >(grep -v '^WARNING' >&2)
  # Compiled by all processors at once; some packages bring files for other Pythons, which cannot be.
  .venv/bin/python -m compileall -q -q -j 0 .venv/lib fedgrass >/dev/null || true
  touch "$stamp-$extras"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || ensure_venv "$@"
