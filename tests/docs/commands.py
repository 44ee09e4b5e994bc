"""Run every documented command and print one JSON line with their numbers: ``python -m tests.docs.commands``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.docs.known import problem
from tests.docs.pages import pages
from tests.docs.session import CommandFailedError, Session


def count(ran: dict[str, str]) -> dict[str, int]:
    """Count the documented commands; each text once.

    Parameters
    ----------
    ran
        Commands that a session ran, and the fleet that each ran against.
    """
    found = list(pages())
    texts = {command.text: block.kind for page in found for block in page.blocks for command in block.commands}
    elsewhere = sum(kind == "run by" and text not in ran for text, kind in texts.items())
    return {
        "commands": len(texts),
        "run": len(ran),
        "run_locally": sum(fleet != "account" for fleet in ran.values()),
        "run_on_the_account_stand_in": sum(fleet == "account" for fleet in ran.values()),
        "covered_by_other_tests": elsewhere,
        "checked_only": sum(kind == "not run" and text not in ran for text, kind in texts.items()),
        "mentions_checked": sum(len(page.mentions) for page in found),
        "python_blocks_run": sum(b.language == "python" and not b.kind for page in found for b in page.blocks),
    }


def main() -> int:
    """Run all of it."""
    failures = [
        f"{command.where}: {found}"
        for page in pages()
        for command in [*page.mentions, *(c for block in page.blocks for c in block.commands)]
        if (found := problem(command.text))
    ]
    with tempfile.TemporaryDirectory(prefix="docs-", ignore_cleanup_errors=True) as folder:
        with Session(Path(folder) / "checkout") as session:
            failures += [failure for name in sys.argv[1:] or session.pages if (failure := _run(session, name))]
        sys.stderr.write("".join(f"{failure}\n" for failure in failures))
        print(json.dumps({**count(session.ran), "failed": len(failures)}))
    return 1 if failures else 0


def _run(session: Session, name: str) -> str:
    try:
        session.run(name)
    except CommandFailedError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
