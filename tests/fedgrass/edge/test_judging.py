"""A model that ends whoever judges it is refused with what it was, and the model before stays."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.data import DataSettings
from fedgrass.edge.admit import admit
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings
from fedgrass.logs import Log
from tests.fedgrass.edge import digits


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


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ("segfaults", "its admission died by signal 11 (SIGSEGV)"),
        ("is_hungry", "its admission died as there was no more memory"),
        ("is_broken", f"ZeroDivisionError: division by zero (test_judging.py, line {LINE_OF_BROKEN}, in is_broken)"),
    ],
)
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
