"""A model that ends whoever judges it is refused with what it was, and the model before stays."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.data import DataSettings
from fedgrass.edge.admit import admit
from fedgrass.edge.judging import Case, Judgement, judge_here
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings
from fedgrass.logs import Log
from tests.fedgrass.edge import digits
from tests.fixtures.waiting import PATIENCE

FORKING = """
import sys, threading
from fedgrass.edge.child import ForkedChild
from fedgrass.edge.judging import Case, be_judge, judge_apart
assert threading.active_count() == 1
judge = ForkedChild(be_judge)
print(judge_apart(Case.model_validate_json(sys.argv[1]), start=lambda: judge).model_dump_json())
"""


def segfaults(*_: object) -> None:
    """Die as native code does."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)


def is_hungry(*_: object) -> None:
    """Ask for more memory than there is."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    np.ones(1 << 32, np.float64)


def is_broken(*_: object) -> None:
    """Fail as anybody's code may."""
    raise ZeroDivisionError("division by zero")


LINE_OF_BROKEN = is_broken.__code__.co_firstlineno + 2


ends = pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ("segfaults", "its admission died by signal 11 (SIGSEGV)"),
        ("is_hungry", "its admission died as there was no more memory"),
        ("is_broken", f"ZeroDivisionError: division by zero (test_judging.py, line {LINE_OF_BROKEN}, in is_broken)"),
    ],
)


@ends
def test_a_model_that_ends_whoever_judges_it_is_refused_and_the_one_before_stays(
    tmp_path: Path, loader: str, reason: str
) -> None:
    store = ModelStore(tmp_path / "store")
    with store.lock():
        store.activate(Bundle.open(digits.BUNDLE))
    better = digits.version(tmp_path / "better", "1.1.0", digits.trained())
    runtime = RuntimeSettings(fleet="f", data=DataSettings(loader=f"tests.fedgrass.edge.test_judging:{loader}"))
    admission = admit(better.folder, store, runtime, ModelDeployerSettings(), Log("test"))
    assert admission is not None
    assert (admission.outcome, admission.reason) == ("refused", reason)
    active = store.active()
    assert active is not None
    assert active.manifest.version == admission.active_version == "1.0.0"


def case_of(folder: Path, data: DataSettings) -> Case:
    better = digits.version(folder / "better", "1.1.0", digits.trained())
    return Case(
        candidate=better.folder,
        active=digits.BUNDLE,
        builders=folder / "builders",
        runtime=RuntimeSettings(fleet="f", data=data),
        deployer=ModelDeployerSettings(),
    )


def judged_in_a_fork(case: Case) -> Judgement:
    command = [sys.executable, "-c", FORKING, case.model_dump_json(by_alias=True)]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return Judgement.model_validate_json(done.stdout.splitlines()[-1])


@ends
def test_who_judges_in_a_fork_of_the_script_ends_alike(tmp_path: Path, loader: str, reason: str) -> None:
    judgement = judged_in_a_fork(case_of(tmp_path, DataSettings(loader=f"tests.fedgrass.edge.test_judging:{loader}")))
    assert (judgement.admitted, judgement.reason) == (False, reason)


def test_a_fork_comes_to_the_same_verdict_by_the_same_figures(tmp_path: Path) -> None:
    case = case_of(tmp_path, digits.settings_for(digits.write_data(tmp_path / "data.npz")))
    here, apart = judge_here(case, Log("test")), judged_in_a_fork(case)
    # What a run takes of time and memory differs from run to run.
    for judgement in (here, apart):
        for measured in ("latency_ms", "memory_mb"):
            judgement.metrics.pop(measured)
    assert here.admitted
    assert apart == here
