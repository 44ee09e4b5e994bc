"""Every command of the documentation does what its page says, on this machine; those that cannot run here at least exist."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.docs.known import problem
from tests.docs.pages import ROOT, Block, pages
from tests.docs.session import Session

PAGES = {page.name: page for page in pages()}
RUNNABLE = [
    page.name
    for page in PAGES.values()
    if any(not block.kind and block.language in {"sh", "console", "python"} for block in page.blocks)
]


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(tmp_path_factory.mktemp("docs") / "checkout") as session:
        yield session


@pytest.mark.end_to_end
@pytest.mark.timeout(7200)  # the first page that needs the fleet starts it, and its pages before it
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("name", RUNNABLE)
def test_what_a_page_says_works(documented: Session, name: str) -> None:
    documented.run(name)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_that_a_page_names_exists_with_its_options(name: str) -> None:
    page = PAGES[name]
    assert page.problems == []
    commands = [*page.mentions, *(command for block in page.blocks for command in block.commands)]
    assert [f"{command.where}: {found}" for command in commands if (found := problem(command.text))] == []


@pytest.mark.parametrize("name", PAGES)
def test_what_is_said_to_be_run_elsewhere_is_and_data_in_fences_is_sound(name: str) -> None:
    for block in PAGES[name].blocks:
        if block.kind == "run by":
            assert run_there(block), f"{name}:{block.line}: {block.marker[1]} does not run this"
        if block.language == "json":
            json.loads(block.text)
        if block.language == "python":
            compile(block.text, f"{name}:{block.line}", "exec")


def run_there(block: Block) -> bool:
    """Whether the page that a marker names has the same commands and runs them; of a test, that there is such a file."""
    other = PAGES.get(block.marker[1])
    if other is None:
        return (ROOT / block.marker[1]).is_file()
    there = {command.text for b in other.blocks if b.kind in {"", "stays up"} for command in b.commands}
    return {command.text for command in block.commands} <= there


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("fedgrass round stat", "no command 'stat'"),
        (".venv/bin/fedgrass round start --sett fit.epochs=1", "no option --sett"),
        ("AWS_REGION=x fedgrass fleet list --jsonl | tail -1", "no option --jsonl"),
        ("./scripts/demo --device 3", "no option --device"),
        ("./scripts/demonstrate", "no script"),
        ("python -m benchmarks.nothing", "no module"),
        ("python -m benchmarks.wire --rouds 3", "no option --rouds"),
        ("aws greengrassv2 make-deployment", "no operation 'make-deployment'"),
        ("aws greengrassv2 create-deployment --cli-inputjson x", "no option --cli-inputjson"),
        ("fedgras round start", "unknown program"),
        ("fedgrass round start 'x", "unexpected EOF"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, wrong: str) -> None:
    assert wrong in problem(command)
