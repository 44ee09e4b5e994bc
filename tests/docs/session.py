"""Runs what the documentation says, in a folder that looks like a checkout, with one fleet and one account for all pages."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from types import TracebackType

from fedgrass.local.aws.client import LocalAwsProcess, start
from fedgrass.local.processes import spawn, stop
from tests.docs.pages import ROOT, Block, Command, Page, pages
from tests.fixtures.waiting import PATIENCE

FLEET = "mill"  # of docs/aws.md

# The stand-in has no CodeBuild to make an image, and its functions have this machine's libraries.
_ON_THE_STAND_IN = {"./scripts/deploy": "./scripts/deploy --no-image --no-dependencies"}
# What changes the shell itself is done on every page; a program that several pages run is run once.
_SHELL_STATE = ("export ", "cd ", ". ", "source ")


class CommandFailedError(Exception):
    """A documented command did not do what the page says."""


class Session:
    """Runs pages; leaving its ``with`` block stops all that it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {page.name: page for page in pages()}
        self.ran: dict[str, str] = {}  # a command's text, and the fleet it ran against
        self._done: set[str] = set()
        self._up: set[str] = set()
        self._stack = contextlib.ExitStack()
        self._account: LocalAwsProcess | None = None
        self._make_checkout()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, name: str) -> None:
        """Run a page's commands and then its Python, once, after the pages that it follows.

        Raises
        ------
        CommandFailedError
            With the command's page and line, and what it wrote.
        """
        if name in self._done:
            return
        self._done.add(name)
        page = self.pages[name]
        for earlier in page.after:
            self.run(earlier)
        for block in page.blocks:
            if block.kind == "file":
                path = self.folder / block.marker[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
        for segment in _segments(page):
            if isinstance(segment, Block):
                self._stay_up(page, segment)
            else:
                self._shell(page, segment)
        script = "".join(_padded(block, page) for block in page.blocks if block.language == "python" and not block.kind)
        if script:
            self._python(page, script)

    def _make_checkout(self) -> None:
        """Link to each thing of the checkout, so that what commands write stays in this folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
        tracked = {line.partition("/")[0] for line in listed.splitlines()} or {path.name for path in ROOT.iterdir()}
        for name in sorted(tracked - {".venv", ".git", ".fedgrass"}):
            (self.folder / name).symlink_to(ROOT / name)
        venv = self.folder / ".venv"
        venv.mkdir()
        for path in Path(sys.prefix).iterdir():
            if not path.name.startswith(".fedgrass"):
                (venv / path.name).symlink_to(path)
        # scripts/setup.sh would install what is there already, under other tests' feet.
        extras = ",".join(metadata("fedgrass").get_all("Provides-Extra") or ())
        stamp = f"touch .venv/.fedgrass-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-{extras}"
        subprocess.run(["bash", "-c", stamp], cwd=self.folder, check=True)
        wheels = ROOT / ".fedgrass" / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        (self.folder / ".fedgrass").mkdir()
        (self.folder / ".fedgrass" / "wheels").symlink_to(wheels)

    def _environment(self, page: Page) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FEDGRASS_"))}
        environment = {
            **kept,
            "PATH": f"{self.folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
            "FEDGRASS_STATE": str(self.folder / ".fedgrass"),
            "PYTHONUNBUFFERED": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "AWS_PAGER": "",
        }
        if page.fleet == "account":
            environment |= self._account_environment()
        return environment

    def _account_environment(self) -> dict[str, str]:
        """The variables of somebody who has an account: a profile, in a file of their own."""
        if self._account is None:
            self._account = self._stack.enter_context(start(self.folder / "account"))
        variables = self._account.environment()
        keys = "\n".join(f"{name.lower()} = {variables.pop(name)}" for name in list(variables) if "_KEY" in name)
        profile = f"{keys}\nregion = {self._account.region}\n"
        path = self.folder / "aws-config"
        path.write_text(f"[default]\n{profile}\n[profile me]\n{profile}")
        return {**variables, "AWS_CONFIG_FILE": str(path), "FEDGRASS_FLEET": FLEET}

    def _preamble(self, page: Page) -> str:
        if page.fleet != "demo":
            return ""
        for other in self.pages.values():
            for block in other.blocks:
                if block.kind == "stays up" and block.text.startswith("./scripts/demo"):
                    self._stay_up(other, block)
                    return ". .fedgrass/demo/environment\n"
        raise CommandFailedError("no page starts the demo's fleet: expected a block `./scripts/demo …` that stays up")

    def _shell(self, page: Page, commands: list[Command]) -> None:
        lines = [f"set -euo pipefail\n{self._preamble(page)}"]
        for command in commands:
            if command.text in self.ran and not command.text.startswith(_SHELL_STATE):
                continue
            text = command.text
            if page.fleet == "account":
                for program, locally in _ON_THE_STAND_IN.items():
                    text = text.replace(program, locally)
            lines.append(f"echo ':: {command.where}'\n{text}\n")
            self.ran[command.text] = page.fleet
        if len(lines) == 1:
            return
        self._check(page, ["bash", "-c", "".join(lines)])

    def _python(self, page: Page, script: str) -> None:
        path = self.folder / f"{page.name.replace('/', '_')}.py"
        path.write_text(script)
        # As a notebook has it: no file that the processes of a simulation would run again.
        run = f"exec(compile(open({str(path)!r}).read(), {page.name!r}, 'exec'))"
        self._check(page, [str(self.folder / ".venv/bin/python"), "-c", run])

    def _check(self, page: Page, argv: list[str]) -> None:
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env={**self._environment(page), "PYTHONPATH": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
        if done.returncode:
            raise CommandFailedError(f"{page.name} ended with code {done.returncode}:\n{done.stdout[-4000:]}")

    def _stay_up(self, page: Page, block: Block) -> None:
        """Start a block in the background and wait until it has written its marker's text."""
        if block.text in self._up:
            return
        self._up.add(block.text)
        log = self.folder / f"stays-up-{len(self._up)}.log"
        script = block.text if block.text.startswith("./scripts/demo") else self._preamble(page) + block.text
        with log.open("wb") as stream:
            process = spawn(
                ["bash", "-c", script], cwd=self.folder, env=self._environment(page), stdout=stream, stderr=stream
            )
        self._stack.callback(stop, process)
        deadline = time.monotonic() + PATIENCE
        while block.marker[1] not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandFailedError(
                    f"{page.name}:{block.line}: not up ({process.poll()}):\n{log.read_text()[-4000:]}"
                )
            time.sleep(0.1)
        for command in block.commands:
            self.ran[command.text] = page.fleet


def _segments(page: Page) -> Iterator[Block | list[Command]]:
    """What is typed into one terminal, between the blocks that keep a terminal to themselves."""
    commands: list[Command] = []
    for block in page.blocks:
        if block.kind == "stays up":
            yield commands
            yield block
            commands = []
        elif not block.kind:
            commands += block.commands
    yield commands


def _padded(block: Block, page: Page) -> str:
    """Return a Python block with the empty lines that give tracebacks the page's line numbers."""
    before = [
        other for other in page.blocks if other.language == "python" and not other.kind and other.line < block.line
    ]
    written = before[-1].line + before[-1].text.count("\n") if before else 0
    return "\n" * (block.line - written) + block.text
