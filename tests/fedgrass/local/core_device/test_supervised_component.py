import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil
import pytest

from fedgrass.local.core_device.component import Component, Request, Specification, State, Surroundings
from fedgrass.local.core_device.layout import Layout
from fedgrass.local.core_device.scripts import read_lifecycle
from fedgrass.local.core_device.supervisor import Supervisor
from fedgrass.local.recipe import DependencyType
from tests.fedgrass.local.core_device.harness import is_gone
from tests.fixtures.waiting import PATIENCE, eventually

PATH = {"PATH": "/usr/bin:/bin"}


class Bench:
    """One component with its history of states; dependencies' states are set by the test."""

    def __init__(self, folder: Path, lifecycle: Mapping[str, object], dependencies: Mapping[str, State]) -> None:
        self.folder = folder
        self.history: list[State] = []
        self.others = dict(dependencies)
        self._moved = asyncio.Event()
        hard = dict.fromkeys(dependencies, DependencyType.HARD)
        self.component = Component(
            Specification("C", "1.0.0", read_lifecycle(lifecycle), hard),
            Surroundings(lambda _: PATH, folder, folder / "log", self.others.get, self._changed),
        )

    def _changed(self, component: Component) -> None:
        self.history.append(component.state)
        self._moved.set()

    async def reaches(self, *states: State) -> None:
        """Wait until the history ends with ``states``."""

        async def until() -> None:
            while tuple(self.history[-len(states) :]) != states:
                self._moved.clear()
                await self._moved.wait()

        await asyncio.wait_for(until(), PATIENCE)

    def set_dependency(self, name: str, state: State) -> None:
        self.others[name] = state
        self.component.dependency_changed()

    def output(self) -> str:
        return (self.folder / "log").read_text()


def live(
    folder: Path,
    lifecycle: Mapping[str, object],
    scenario: Callable[[Bench], Awaitable[None]],
    dependencies: Mapping[str, State] | None = None,
) -> list[State]:
    """Run a component through a scenario, stop it, and return its states."""

    async def run() -> list[State]:
        bench = Bench(folder, lifecycle, dependencies or {})
        bench.component.start()
        try:
            await scenario(bench)
        finally:
            await asyncio.wait_for(bench.component.stop(), PATIENCE)
        return bench.history

    return asyncio.run(run())


async def _finished(bench: Bench) -> None:
    await bench.reaches(State.FINISHED)


async def _running(bench: Bench) -> None:
    await bench.reaches(State.RUNNING)


async def _broken(bench: Bench) -> None:
    await bench.reaches(State.BROKEN)


def test_install_then_run_to_the_end(tmp_path: Path) -> None:
    states = live(tmp_path, {"install": "echo one", "run": "echo two"}, _finished)
    assert states == [
        State.NEW, State.INSTALLED, State.STARTING, State.RUNNING, State.STOPPING, State.FINISHED,
    ]  # fmt: skip
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_an_empty_lifecycle_finishes(tmp_path: Path) -> None:
    assert live(tmp_path, {}, _finished)[-1] is State.FINISHED


def test_startup_is_running_when_its_script_has_ended(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.STARTING, State.RUNNING)
        assert bench.output() == "up\n"

    live(tmp_path, {"startup": "echo up"}, scenario)


@pytest.mark.parametrize(("phase", "failed_in"), [("install", State.NEW), ("startup", State.STARTING)])
def test_the_third_error_in_one_state_is_broken(tmp_path: Path, phase: str, failed_in: State) -> None:
    states = live(tmp_path, {phase: "echo try; exit 3"}, _broken)
    assert states.count(State.ERRORED) == 2
    assert states.count(failed_in) == 3
    assert (tmp_path / "log").read_text() == "try\n" * 3


def test_run_that_keeps_failing_is_broken_with_its_reason(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.BROKEN)
        assert bench.component.reason == "run exited with code 7"

    live(tmp_path, {"run": "exit 7"}, scenario)


def test_a_killed_run_is_started_again(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.RUNNING)
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.01)
        psutil.Process(int((tmp_path / "pid").read_text())).kill()
        await bench.reaches(State.ERRORED, State.STOPPING, State.INSTALLED, State.STARTING, State.RUNNING)

    live(tmp_path, {"run": "echo $$ > pid.new; mv pid.new pid; exec sleep 100000"}, scenario)


def test_a_success_in_between_forgives_earlier_errors(tmp_path: Path) -> None:
    # Fails twice, starts; and after a restart fails twice again, and starts: never three in a row.
    script = "echo x >> n; test $(( $(wc -l < n) % 3 )) = 0"

    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.RUNNING)
        bench.component.request(Request.RESTART)
        await bench.reaches(State.STOPPING, State.INSTALLED, State.STARTING)
        await bench.reaches(State.RUNNING)

    states = live(tmp_path, {"startup": script}, scenario)
    assert State.BROKEN not in states
    assert states.count(State.ERRORED) == 4


def test_a_script_over_its_time_is_an_error(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.BROKEN)
        assert "did not end within 0.05 s" in bench.component.reason

    live(tmp_path, {"install": {"script": "exec sleep 100000", "timeout": 0.05}}, scenario)


def test_recover_runs_between_an_error_and_the_next_try(tmp_path: Path) -> None:
    live(tmp_path, {"run": "echo run; exit 1", "recover": "echo recover"}, _broken)
    assert (tmp_path / "log").read_text() == "run\nrecover\n" * 2 + "run\n"


def test_shutdown_runs_before_the_process_is_ended(tmp_path: Path) -> None:
    run = "trap 'echo terminated; exit 0' TERM; echo ready > ready; while :; do sleep 0.02; done"

    async def scenario(bench: Bench) -> None:
        while not (tmp_path / "ready").exists():
            await asyncio.sleep(0.01)

    live(tmp_path, {"run": run, "shutdown": "echo shutdown"}, scenario)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line in ("shutdown", "terminated")] == ["shutdown", "terminated"]


def test_nothing_of_a_component_outlives_its_stop(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.RUNNING)

    live(tmp_path, {"startup": "sleep 100000 & echo $! > pid"}, scenario)
    eventually(lambda: is_gone(int((tmp_path / "pid").read_text())), "end of the background process")


def test_run_waits_for_hard_dependencies_but_install_does_not(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.INSTALLED)
        assert bench.output() == "install\n"
        bench.set_dependency("D", State.RUNNING)
        await bench.reaches(State.RUNNING)

    live(tmp_path, {"install": "echo install", "startup": "echo start"}, scenario, {"D": State.NEW})


def test_a_component_restarts_when_its_hard_dependency_goes(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.RUNNING)
        bench.set_dependency("D", State.STOPPING)  # still as good as running, says the nucleus
        bench.set_dependency("D", State.NEW)
        await bench.reaches(State.STOPPING, State.INSTALLED)
        bench.set_dependency("D", State.RUNNING)
        await bench.reaches(State.STARTING, State.RUNNING)

    states = live(tmp_path, {"run": "exec sleep 100000"}, scenario, {"D": State.RUNNING})
    assert states.count(State.NEW) == 1  # no second install


def test_a_finished_component_does_not_restart_with_its_dependency(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.FINISHED)
        bench.set_dependency("D", State.NEW)
        bench.set_dependency("D", State.RUNNING)
        assert bench.component.settled

    states = live(tmp_path, {"run": "true"}, scenario, {"D": State.RUNNING})
    assert states.count(State.STARTING) == 1


def test_a_component_that_reports_running_need_not_end_its_startup(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.STARTING)
        bench.component.request(Request.REPORT_RUNNING)
        await bench.reaches(State.RUNNING)
        bench.component.request(Request.REPORT_ERRORED)
        await bench.reaches(State.ERRORED, State.STOPPING, State.INSTALLED, State.STARTING)

    live(tmp_path, {"startup": "exec sleep 100000"}, scenario)


def test_a_stop_during_install_ends_it_at_once(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.01)

    states = live(tmp_path, {"install": "echo > begun; exec sleep 100000"}, scenario)
    assert State.ERRORED not in states


def test_a_halted_component_stays_finished_until_a_restart(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.RUNNING)
        bench.component.request(Request.FINISH)
        await bench.reaches(State.STOPPING, State.FINISHED)
        assert bench.component.halted
        bench.component.request(Request.RESTART)
        await bench.reaches(State.INSTALLED, State.STARTING, State.RUNNING)
        assert not bench.component.halted

    live(tmp_path, {"run": "exec sleep 100000"}, scenario)


def test_a_component_that_is_halted_before_its_start_does_not_start(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.reaches(State.INSTALLED)
        bench.component.request(Request.FINISH)
        await bench.reaches(State.INSTALLED, State.FINISHED)
        bench.component.request(Request.RESTART)
        bench.set_dependency("D", State.RUNNING)
        await bench.reaches(State.STARTING, State.RUNNING)

    live(tmp_path, {"run": "exec sleep 100000"}, scenario, {"D": State.NEW})


def test_a_halt_during_install_lets_it_end_and_goes_no_further(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        while not (tmp_path / "began").exists():
            await asyncio.sleep(0.01)
        bench.component.request(Request.FINISH)
        (tmp_path / "go").touch()
        await bench.reaches(State.INSTALLED, State.FINISHED)

    install = "touch began; until [ -e go ]; do sleep 0.02; done; echo installed"
    states = live(tmp_path, {"install": install, "run": "exec sleep 100000"}, scenario)
    assert (tmp_path / "log").read_text() == "installed\n"
    assert State.STARTING not in states


def test_skipif_skips_a_step(tmp_path: Path) -> None:
    lifecycle = {"install": {"script": "echo no", "skipif": "onpath sh"}, "run": "echo yes"}
    live(tmp_path, lifecycle, _finished)
    assert (tmp_path / "log").read_text() == "yes\n"


def test_a_work_folder_that_is_gone_breaks_the_component_not_the_device(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()

    async def run() -> State:
        bench = Bench(tmp_path, {"run": "true"}, {})
        bench.component._surroundings = Surroundings(
            lambda _: PATH, folder, tmp_path / "log", bench.others.get, bench._changed
        )
        folder.rmdir()
        bench.component.start()
        await bench.reaches(State.BROKEN)
        await bench.component.stop()
        return bench.component.state

    assert asyncio.run(run()) is State.BROKEN


def _set(*names: str, dependencies: Mapping[str, tuple[str, ...]], version: str = "1.0.0") -> dict[str, Specification]:
    scripts = read_lifecycle({"run": "exec sleep 100000", "shutdown": "true"})
    return {
        name: Specification(name, version, scripts, dict.fromkeys(dependencies.get(name, ()), DependencyType.HARD))
        for name in names
    }


def test_only_what_changed_and_its_hard_dependents_restart(tmp_path: Path) -> None:
    async def run() -> dict[str, int]:
        layout = Layout(tmp_path)
        layout.create()
        supervisor = Supervisor(layout, environment=lambda _: PATH, builtin=lambda _: None, changed=lambda: None)
        before = _set("base", "dependent", "other", dependencies={"dependent": ("base",)})
        await supervisor.replace(before)
        assert (await asyncio.wait_for(supervisor.settled(), PATIENCE)).succeeded
        components = dict(supervisor.components)
        pids = {name: one._process.pid for name, one in components.items() if one._process}
        after = {**before, **_set("base", dependencies={}, version="2.0.0")}
        await supervisor.replace(after)
        assert (await asyncio.wait_for(supervisor.settled(), PATIENCE)).succeeded
        kept = {name: int(supervisor.components[name] is components[name]) for name in after}
        now = {name: one._process.pid for name, one in supervisor.components.items() if one._process}
        await supervisor.stop()
        assert now["dependent"] != pids["dependent"]
        assert now["other"] == pids["other"]
        return kept

    assert asyncio.run(run()) == {"base": 0, "dependent": 1, "other": 1}


def test_dependents_stop_before_what_they_depend_on(tmp_path: Path) -> None:
    async def run() -> None:
        layout = Layout(tmp_path)
        layout.create()
        supervisor = Supervisor(layout, environment=lambda _: PATH, builtin=lambda _: None, changed=lambda: None)
        scripts = {
            name: read_lifecycle({"run": "exec sleep 100000", "shutdown": f"echo {name} >> {tmp_path}/order"})
            for name in "abc"
        }
        hard = DependencyType.HARD
        await supervisor.replace(
            {
                "a": Specification("a", "1", scripts["a"], {"b": hard}),
                "b": Specification("b", "1", scripts["b"], {"c": hard}),
                "c": Specification("c", "1", scripts["c"]),
            }
        )
        await asyncio.wait_for(supervisor.settled(), PATIENCE)
        await supervisor.stop()

    asyncio.run(run())
    assert (tmp_path / "order").read_text() == "a\nb\nc\n"
