"""Recipe variables in lifecycle scripts: ``{artifacts:path}`` and the like.

A variable that cannot be resolved is left as it is by the classic nucleus (KernelConfigResolver); nucleus lite cuts the
script off there, and runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgrass.errors import ConfigurationError
from fedgrass.local.core_device.configuration import parse_pointer

_OWN = re.compile(r"\{([.\w-]+):([^:}]*)\}")
_CROSS = re.compile(r"\{([.\w-]+):([.\w-]+):([^:}]*)\}")


@dataclass(frozen=True)
class Places:
    """Where the files of one component version are."""

    artifacts: Path
    unarchived: Path
    work: Path


@dataclass(frozen=True)
class Variables:
    """Resolves the variables in one component's recipe.

    ``places`` and ``configuration_of`` answer for the component itself and for those in ``dependencies``; with
    ``truncates``, text is cut off at the first brace that is no variable.
    """

    component: str
    thing: str
    root: Path
    dependencies: frozenset[str]
    places: Callable[[str], Places]
    configuration_of: Callable[[str], Mapping[str, Any]]
    truncates: bool = False

    def interpolate(self, value: Any) -> Any:
        """Replace the variables in every string of ``value``, maps and lists included."""
        if isinstance(value, Mapping):
            return {key: self.interpolate(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.interpolate(item) for item in value]
        if not isinstance(value, str):
            return value
        if self.truncates:
            return self._up_to_the_first_unresolved(value)
        crossed = _CROSS.sub(self._cross, value)
        return _OWN.sub(lambda match: self._resolve(self.component, match[1], match[2], match[0]), crossed)

    def _up_to_the_first_unresolved(self, text: str) -> str:
        done, position = "", 0
        while (brace := text.find("{", position)) >= 0:
            done += text[position:brace]
            variable = _OWN.match(text, brace)
            resolved = variable and self._resolve(self.component, variable[1], variable[2], variable[0])
            if variable is None or resolved is None or resolved == variable[0]:
                return done
            done, position = done + resolved, variable.end()
        return done + text[position:]

    def _cross(self, match: re.Match[str]) -> str:
        component, namespace, key = match.groups()
        if component != self.component and component not in self.dependencies:
            return match[0]
        return self._resolve(component, namespace, key, match[0])

    def _resolve(self, component: str, namespace: str, key: str, unresolved: str) -> str:
        if namespace == "configuration":
            return self._configured(component, key, unresolved)
        if (namespace, key) == ("iot", "thingName"):
            return self.thing
        if (namespace, key) == ("kernel", "rootPath"):
            return str(self.root)
        if namespace not in ("artifacts", "work"):
            return unresolved
        places = self.places(component)
        known = {
            ("artifacts", "path"): places.artifacts,
            ("artifacts", "decompressedPath"): places.unarchived,
            ("work", "path"): places.work,
        }
        return str(known.get((namespace, key), unresolved))

    def _configured(self, component: str, pointer: str, unresolved: str) -> str:
        node: Any = self.configuration_of(component)
        try:
            for key in parse_pointer(pointer):
                node = node[int(key)] if isinstance(node, list) else node[key]
        except (ConfigurationError, KeyError, IndexError, TypeError, ValueError):
            return unresolved
        if isinstance(node, (dict, list)):
            return json.dumps(node, sort_keys=True, separators=(",", ":"))
        # As JSON spells them: a script that compares with "true" must not find Python's "True".
        return json.dumps(node) if isinstance(node, bool) or node is None else str(node)
