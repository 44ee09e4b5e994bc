"""Whether a documented command exists: its program, its subcommands and its options, without running it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import typer
from botocore import xform_name
from botocore.exceptions import UnknownServiceError

from fedgrass import cli
from tests.docs.pages import ROOT

_OPERATORS = {"|", "||", "&&", ";", "&", "(", ")"}
_REDIRECTIONS = {">", ">>", "<", "2>", ">&"}
_SHELL = {
    "export",
    "cd",
    "ls",
    "cat",
    "cp",
    "mkdir",
    "unzip",
    "git",
    "pip",
    "pip3",
    "tail",
    "systemctl",
    "java",
    "openssl",
    "wait",
    "python",
    "source",
    ".",
}
_NOT_HERE = {"gdk", "docker", "sudo", "ray"}
# What the AWS command line adds to the operations of the services.
_AWS_OWN = {"s3 ls", "s3 cp", "s3 sync", "cloudformation deploy", "sso login", "configure", "logs tail"}
# Of the AWS CLI itself, in no service model: https://docs.aws.amazon.com/cli/latest/reference/iot/create-keys-and-certificate.html
_AWS_FILES = {"certificate-pem-outfile", "public-key-outfile", "private-key-outfile"}
_AWS_GLOBAL = {"cli-input-json", "query", "output", "region", "profile", "endpoint-url", "no-cli-pager"}


def problem(text: str) -> str:
    """Return what is wrong with a line of shell; empty if nothing is."""
    parsed = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    if parsed.returncode:
        return parsed.stderr.strip()
    return next((found for words in simple_commands(text) if (found := _problem_of(words))), "")


def simple_commands(text: str) -> Iterator[list[str]]:
    """Take a line apart into commands, without redirections and the variables set before them."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _OPERATORS:
            words.append(word)
            continue
        while words and re.match(r"^\w+=", words[0]):
            words.pop(0)
        if words:
            yield words
        words = []


def _problem_of(words: list[str]) -> str:
    program, arguments = words[0], words[1:]
    if program.endswith("fedgrass"):
        return _problem_of_click(_fedgrass(), arguments)
    if "scripts/" in program:
        return _problem_of_script(ROOT / program, arguments)
    if program.rpartition("/")[2].startswith("python") and arguments[:1] == ["-m"]:
        return _problem_of_module(arguments[1], arguments[2:])
    if program.rpartition("/")[2] == "aws":
        return _problem_of_aws(arguments)
    known = program in _SHELL | _NOT_HERE or program.startswith(".venv/bin/")
    return "" if known else f"unknown program {program!r}"


@cache
def _fedgrass() -> Any:
    return typer.main.get_command(cli.cli)


def _problem_of_click(command: Any, words: list[str]) -> str:
    """Follow subcommands, then compare options; ``…`` stands for what a reader fills in. The command is typer's own click's."""
    path = "fedgrass"
    words = [word for word in words if word != "…"]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        below = command.commands.get(words[0])
        if below is None:
            return f"{path}: no command {words[0]!r}; there are {', '.join(sorted(command.commands))}"
        command, words, path = below, words[1:], f"{path} {words[0]}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        option = word.partition("=")[0]
        if re.match(r"^--?[a-z]", option) and option not in known | {"--help"}:
            return f"{path}: no option {option}; there are {', '.join(sorted(known))}"
    return ""


def _problem_of_script(path: Path, words: list[str]) -> str:
    if not path.is_file():
        return f"no script {path.name}"
    runs = re.search(r'python -m ([\w.]+) "\$@"', path.read_text())
    if runs and runs[1] != "pytest":
        return _problem_of_module(runs[1], words)
    return ""


def _problem_of_module(name: str, words: list[str]) -> str:
    """A module's options stand in its source, or that of its ``__main__``: importing benchmarks would take seconds."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        return f"no module {name}"
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
        if spec is None:
            return f"{name} cannot be run: it has no __main__"
    source = Path(spec.origin or "").read_text() + (ROOT / "fedgrass/cloud/infrastructure/script.py").read_text()
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and not re.search(rf"""["'/]{option}["'/]""", source):
            argument = option[2:].replace("-", "_").removeprefix("no_")
            if not re.search(rf"^    {argument}: ", source, re.MULTILINE):
                return f"python -m {name}: no option {option}"
    return ""


def _problem_of_aws(words: list[str]) -> str:
    service, operation = words[0], words[1] if len(words) > 1 else ""
    if service in _AWS_OWN or f"{service} {operation}" in _AWS_OWN:
        return ""
    try:
        model = botocore.session.get_session().get_service_model(service)
    except UnknownServiceError:
        return f"aws: no service {service!r}"
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    if operation not in operations:
        return f"aws {service}: no operation {operation!r}"
    shape = model.operation_model(operations[operation]).input_shape
    known = (
        _AWS_GLOBAL
        | (_AWS_FILES if operation == "create-keys-and-certificate" else set())
        | {xform_name(name, "-") for name in (shape.members if shape else ())}
    )
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    unknown = sorted(given - known - {f"no-{name}" for name in known})
    return f"aws {service} {operation}: no option --{unknown[0]}" if unknown else ""
