"""The trainer on a loaded machine: what else runs has the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fedgrass.edge import digits
from tests.fixtures.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
TRAINING = """
import sys, threading
from pathlib import Path
from components.trainer.work import lower_priority
from fedgrass import data
from fedgrass.bundle import Bundle
from fedgrass.data import DataSettings
from fedgrass.edge.resource_policy import ResourcePolicy, Pause
from fedgrass.edge.settings import TrainerSettings
from fedgrass.edge.system import Sensors
from fedgrass.engines.base import FitSettings, Hooks
from fedgrass.engines.litert import LiteRTEngine

folder, file, nice, most = sys.argv[1:]
settings = TrainerSettings(nice_level=int(nice), max_cpu_percent=float(most), min_free_memory_mb=0, min_free_disk_mb=0)
pause = Pause(ResourcePolicy(lambda: settings, Sensors(Path("/")).read), 3600, lambda reason: print(reason, flush=True))
stopping = threading.Event()

def train():
    lower_priority(settings.nice_level)
    bundle = Bundle.open(Path(folder))
    examples = data.load(DataSettings(path=file), bundle.manifest).train
    print("training", flush=True)
    hooks = Hooks(after_batch=lambda epoch, step: pause(stopping))
    LiteRTEngine(bundle).fit(examples, FitSettings(epochs=100_000), hooks=hooks)

thread = threading.Thread(target=train)
thread.start()
thread.join()
"""
APPLICATION = "while True: pass"


@pytest.mark.parametrize(("nice", "most", "said"), [("10", "100", "training"), ("0", "20", "maxCpuPercent")])
def test_an_application_at_full_load_keeps_most_of_a_processor_that_it_shares_with_a_training(
    tmp_path: Path, nice: str, most: str, said: str
) -> None:
    if said == "maxCpuPercent" and os.getpriority(os.PRIO_PROCESS, 0) > 0:
        pytest.skip("these tests run at a niceness above 0, and what does so is not counted among other programs")
    data = digits.write_data(tmp_path / "data.npz", 500)
    training_command = [sys.executable, "-c", TRAINING, str(digits.BUNDLE), str(data), nice, most]
    with (tmp_path / "out").open("wb") as out:
        # In one session, as components of one nucleus are: niceness counts among processes of one service only.
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        application = subprocess.Popen([sys.executable, "-c", APPLICATION])
        training = subprocess.Popen(training_command, env=environment, stdout=out)
    try:
        eventually(lambda: training.poll() is not None or said in (tmp_path / "out").read_text())
        both = [psutil.Process(child.pid) for child in (training, application)]
        for process in both:
            for thread in process.threads():  # a thread's affinity is its own
                os.sched_setaffinity(thread.id, {min(os.sched_getaffinity(0))})
        before = [sum(process.cpu_times()[:2]) for process in both]

        def spent() -> list[float]:
            return [sum(process.cpu_times()[:2]) - start for process, start in zip(both, before, strict=True)]

        eventually(lambda: sum(spent()) > 2.0)
        trained, applied = spent()
        assert training.poll() is None
        # Niceness 10 weighs 110 against 1024: nine tenths, if the kernel could share out arbitrarily short times.
        assert applied / (trained + applied) > 0.8
    finally:
        for child in (application, training):
            child.kill()
            child.wait()
