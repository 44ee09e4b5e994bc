"""A fleet's account and what runs in it: the real functions, the real job, two devices, an operator, and disturbances."""

from __future__ import annotations

import base64
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from fedgrass import tensors
from fedgrass.account import Account
from fedgrass.bundle import ARCHITECTURE, MANIFEST, PARAMETERS, Bundle, Manifest
from fedgrass.cloud.aggregator import manual_release
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.registry import Registry
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.aggregator.s3 import Bucket, RoundUpdates
from fedgrass.cloud.rounds.services import Services
from fedgrass.cloudformation import StackOutputs
from fedgrass.errors import FedgrassError
from fedgrass.protocol.messages import Announcement, Base, Heartbeat, Message, ModelNotice, UpdateNotice
from fedgrass.protocol.names import (
    GLOBAL_MODEL,
    DeviceChannel,
    device_topic,
    model_prefix,
    parameters_key,
    update_key,
    version_order,
)
from fedgrass.protocol.records import ModelOutcome, RoundRecord, to_attribute
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round, load_state, save_settings, set_current_model
from fedgrass.update import UpdateHeader, write_update
from tests.explorer.dynamo import Store, cancelled, refusal
from tests.explorer.machine import Execution, Machine
from tests.explorer.scheduler import KilledError, Scheduler, Task
from tests.explorer.services import START, Greengrass, Jobs, Objects, Retained, Scheduled, ScheduledTable

FLEET, BUCKET, FIRST = "mill", "fedgrass-mill", "1.0.0"
GROUP_ARN = f"arn:aws:iot:us-east-1:123456789012:thinggroup/{FLEET}"
CANARIES_ARN = "arn:aws:iot:us-east-1:123456789012:thinggroup/canaries"
THINGS = ("a", "b")
_ENVIRONMENT = {
    "FEDGRASS_FLEET": FLEET,
    "FEDGRASS_ACCOUNT": "123456789012",
    "FEDGRASS_BUCKET": BUCKET,
    "FEDGRASS_ROUNDS_TABLE": "rounds",
    "FEDGRASS_DEVICES_TABLE": "devices",
    "FEDGRASS_JOB_ROLE_ARN": "arn:aws:iam::123456789012:role/aggregator",
    "FEDGRASS_IMAGE": "aggregator",
    "FEDGRASS_THING_GROUP_ARN": GROUP_ARN,
    "FEDGRASS_MODEL_COMPONENT": GLOBAL_MODEL,
    "FEDGRASS_MODEL_PACKAGE_GROUP": "fedgrass-mill",
    "FEDGRASS_INSTANCE_TYPE": "ml.m5.large",
    "FEDGRASS_INSTANCE_COUNT": "1",
}
_PATIENCE = 7200  # seconds after which somebody starts another round
_RETRIED = 2  # times that Lambda repeats an event whose function failed
_CONFLICTED = {"put_item", "update_item", "transact_write_items", "delete_item"}

Plan = dict[int, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Scenario:
    """What is going on before anything is disturbed.

    ``held`` is run first and left held, so that there is a model to release by hand. ``operator`` acts while the round runs.
    ``refused`` is a version that all devices refuse.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)
    held_before: bool = False
    released_before: bool = False
    operator: tuple[str, ...] = ()
    second: dict[str, Any] | None = None
    refused: str = ""


@dataclass(frozen=True)
class Schedule:
    """A run that can be repeated: a scenario, what happens at which step, and which events come how often."""

    scenario: Scenario
    plan: Plan
    seed: int = 0
    events: dict[int, int] = field(default_factory=dict)
    obeys: bool = True  # whether a stopped job ends at SIGTERM


class StoppedError(SystemExit):
    """What a job's handler of SIGTERM raises."""


class World:
    """One fleet, one schedule; ``current`` is the one that runs."""

    current: World | None = None
    swept = True  # whether the schedule's sweep comes before the next round

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.scheduler = Scheduler(self._before)
        self.machine = Machine(self.scheduler, self._task, self._execution_ended)
        self.store = Store()
        self.rounds_table = self.store.table("rounds", "key")
        self.devices_table = self.store.table("devices", "thing")
        self.objects = Objects()
        self.retained = Retained(self._announced)
        self.jobs = Jobs(self._job_started, self._job_stop)
        self.greengrass = Greengrass(self._deployed, self.now)
        self.greengrass.core_devices = {GROUP_ARN: list(THINGS), CANARIES_ARN: ["a"]}
        self.main: Execution | None = None
        self.disturbed = False  # whether the plan is in force
        self.deliveries = 0
        self.job_tasks: dict[str, list[Task]] = {}
        self.answered: set[tuple[str, int, str]] = set()
        self.pending_errors: dict[int, list[str]] = {}
        self.outcomes: dict[str, str] = {}
        self.seen: list[str] = []
        self.did: Counter[str] = Counter()
        self.operated: list[str] = []
        self.operator_errors: list[str] = []
        self.person_died = False
        self._prepare()

    # ------------------------------------------------------------------------------------------------ the account

    def session(self) -> Any:
        return _Session(self)

    def services(self) -> Services:
        return Services(self.session(), _ENVIRONMENT, clock=self.now)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.scheduler.now)

    def clients(self) -> FleetClients:
        session = self.session()
        return FleetClients(
            fleet=FLEET,
            bucket=Bucket(session.client("s3"), BUCKET),
            rounds=session.resource("dynamodb").Table("rounds"),
            greengrass=session.client("greengrassv2"),
            iot_data=session.client("iot-data"),
            devices=session.resource("dynamodb").Table("devices"),
            thing_group_arn=GROUP_ARN,
            model_component=GLOBAL_MODEL,
            registry=Registry(session.client("sagemaker"), "fedgrass-mill", "aggregator"),
        )

    def account(self) -> Account:
        account = Account(FLEET, self.session())
        values = {name: name for name in StackOutputs.__dataclass_fields__} | {
            "fleet": FLEET,
            "bucket": BUCKET,
            "rounds_table": "rounds",
            "devices_table": "devices",
            "thing_group_arn": GROUP_ARN,
            "model_component": GLOBAL_MODEL,
            "model_package_group": "fedgrass-mill",
            "image": "aggregator",
        }
        account.__dict__["stack"] = StackOutputs(**values)
        return account

    def _prepare(self) -> None:
        """The fleet as it is before: one model, published and deployed; two devices that are fit."""
        for name, content in first_bundle().items():
            self.objects.objects[model_prefix(FLEET, FIRST) + name] = (content, {})
        manifest = Manifest.model_validate_json(first_bundle()[MANIFEST])
        self.first = Base(
            version=FIRST,
            parameters_key=parameters_key(FLEET, FIRST),
            parameters_sha256=manifest.parameters_sha256,
            graph_sha256=manifest.graph_sha256,
        )
        set_current_model(self.rounds_table, FLEET, self.first, publish=True)
        settings = FleetSettings().overridden({"deadline_seconds": 600, **self.schedule.scenario.settings})
        save_settings(self.rounds_table, FLEET, settings)
        components = {GLOBAL_MODEL: {"componentVersion": FIRST}, "com.acme.Vision": {"componentVersion": "4.2.0"}}
        self.greengrass.deploy({"targetArn": GROUP_ARN, "deploymentName": "mill", "components": components})
        for thing in THINGS:
            beat = Heartbeat(fleet=FLEET, thing=thing, sent_at=START, interval_seconds=86_400)
            item = {**json.loads(beat.encode()), "received_at": int(START.timestamp() * 1000)}
            self.devices_table.put_item(Item=to_attribute(item))

    # ------------------------------------------------------------------------------------------------ running

    def run(self) -> None:
        """Run the scenario with its disturbances, and then one undisturbed round."""
        scenario = self.schedule.scenario
        random.seed(self.schedule.seed)
        World.current = self
        with _virtual(self.scheduler):
            if scenario.held_before or scenario.released_before:
                given = {"release": "never"} if scenario.held_before else {}
                self.machine.start("before", given)
                self.scheduler.run()
            self.scheduler.steps = 0
            self.scheduler.trace.clear()
            self.disturbed = True
            for kind in scenario.operator:
                self.operate(kind)
            self.main = self.machine.start("main", scenario.input)
            if scenario.second is not None:
                self.machine.start("second", scenario.second)
            self.scheduler.run()
            self.steps = self.scheduler.steps
            self.disturbed = False
            self.scheduler.now += _PATIENCE
            if self.swept:
                self.event("open_round", {"sweep": True})
                self.scheduler.run()
            self.between()
            self.next = self.machine.start("next", {})
            self.scheduler.run()

    def between(self) -> None:
        """Overridden by what looks at the state before the next round."""

    def operate(self, kind: str) -> None:
        """Let a person act, in a separate process."""

        def act() -> None:
            account = self.account()
            if kind == "roll_back":
                manual_release.roll_back(account, FIRST)
            elif kind == "release":
                manual_release.release(account, "1.1.0", canaries=False)
            elif kind == "deploy":
                self._stale_deployment()
            else:
                raise NotImplementedError(kind)
            self.operated.append(kind)

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                self.operator_errors.append(f"{kind}: {error}")
                self.person_died |= isinstance(error, KilledError)
                if not isinstance(error, (FedgrassError, KilledError)):
                    self.seen.append(f"person meets an error of AWS: {kind}: {error!r}")

        self.scheduler.spawn(f"operator {kind}", act, done)

    def _stale_deployment(self) -> None:
        greengrass = self.session().client("greengrassv2")
        [page, *_] = greengrass.get_paginator("list_deployments").paginate(targetArn=GROUP_ARN, historyFilter="ALL")
        read = greengrass.get_deployment(deploymentId=page["deployments"][0]["deploymentId"])
        greengrass.create_deployment(targetArn=GROUP_ARN, components=read["components"])

    # ------------------------------------------------------------------------------------------------ functions

    def _handler(self, module: str, payload: dict[str, Any]) -> Any:
        """Call a function's handler as Lambda does, with this account's services."""
        handlers = import_module(f"fedgrass.cloud.rounds.{module}")
        services = self.services()
        return _with_services(handlers, services, payload)

    def _task(self, function: str, payload: dict[str, Any], done: Callable[[Any, BaseException | None], None]) -> Task:
        module = _module_of(function)
        given = json.loads(json.dumps(payload))
        return self.scheduler.spawn(module, lambda: self._handler(module, given), done)

    def event(self, module: str, payload: dict[str, Any]) -> None:
        """Deliver an event: lost, once, or twice; Lambda repeats what fails."""
        self.deliveries += 1
        times = self.schedule.events.get(self.deliveries, 1) if self.disturbed else 1
        for _ in range(times):
            self._deliver(module, payload, _RETRIED)

    def _deliver(self, module: str, payload: dict[str, Any], left: int) -> None:
        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None and left:
                self.scheduler.later(60, lambda: self._deliver(module, payload, left - 1))
            elif error is not None:
                self.seen.append(f"event lost after three tries: {module}: {error!r}")

        self.scheduler.spawn(f"{module} (event)", lambda: self._handler(module, payload), done)

    def _execution_ended(self, execution: Execution) -> None:
        if execution.status in {"ABORTED", "FAILED", "TIMED_OUT"}:
            detail: dict[str, Any] = {"executionArn": execution.arn, "status": execution.status}
            detail |= {"error": execution.error, "cause": execution.cause}
            self.event("abort_round", {"detail": detail})

    # ------------------------------------------------------------------------------------------------ the job

    def _job_started(self, name: str, environment: dict[str, str]) -> None:
        limit = self.jobs.jobs[name]["StoppingCondition"]["MaxRuntimeInSeconds"]
        task = self._job(name, int(environment["FEDGRASS_ROUND"]), original=True)
        self.scheduler.later(limit, lambda: self._end_job(task))

    def _job(self, name: str, number: int, *, original: bool) -> Task:
        def work() -> None:
            with tempfile.TemporaryDirectory(prefix="fedgrass-explorer-", dir=_memory()) as scratch:
                clients = self.clients()
                record = load_round(clients.rounds, FLEET, number)
                source = RoundUpdates(self.session().client("s3"), BUCKET, FLEET, number)
                RoundJob(record, clients, source, Path(scratch), clock=self.now).run()

        def done(_result: Any, error: BaseException | None) -> None:
            if not original:
                return
            status = "Completed" if error is None else "Stopped" if isinstance(error, SystemExit) else "Failed"
            if error is not None and not isinstance(error, (FedgrassError, KilledError, SystemExit)):
                self.seen.append(f"the job raised {error!r}")
            self.jobs.jobs[name]["ProcessingJobStatus"] = status
            said = {"FailureReason": repr(error)} if error is not None else {}
            self.event(
                "aggregation_ended",
                {"detail": {"ProcessingJobName": name, "ProcessingJobStatus": status, **said}},
            )

        task = self.scheduler.spawn("job" if original else "job (clone)", work, done)
        self.job_tasks.setdefault(name, []).append(task)
        return task

    def _job_stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL after two minutes."""
        self.jobs.jobs[name]["ProcessingJobStatus"] = "Stopping"
        task = self.job_tasks[name][0]
        if self.schedule.obeys:
            self.scheduler.interrupt(task, StoppedError(143))
        self.scheduler.later(120, lambda: self._end_job(task))

    def _end_job(self, task: Task) -> None:
        if not task.ended:
            self.scheduler.kill(task)

    # ------------------------------------------------------------------------------------------------ devices

    def _announced(self, payload: bytes) -> None:
        if not payload:
            return
        announcement = Announcement.decode(payload)
        for thing in THINGS:
            if announcement.compare is not None:
                self._once(f"judged {announcement.opened_at}", announcement.round, thing, self._judge(announcement))
            elif announcement.task == "fit":
                self._once("trained", announcement.round, thing, self._train(announcement))

    def _once(self, what: str, number: int, thing: str, act: Callable[[str], None]) -> None:
        if (what, number, thing) not in self.answered:
            self.answered.add((what, number, thing))
            act(thing)

    def _train(self, announcement: Announcement) -> Callable[[str], None]:
        def act(thing: str) -> None:
            content = update(thing, announcement.round, announcement.base.parameters_sha256)
            key = update_key(FLEET, announcement.round, thing)
            self.objects.objects[key] = (content, {})
            notice = UpdateNotice(
                fleet=FLEET,
                round=announcement.round,
                thing=thing,
                status="uploaded",
                opened_at=announcement.opened_at,
                key=key,
                bytes=len(content),
                num_examples=10,
            )
            self._say(thing, "update", notice, "record_update")

        return act

    def _judge(self, announcement: Announcement) -> Callable[[str], None]:
        metrics = {"loss": 0.4, "accuracy": 0.9, "base_loss": 0.5, "base_accuracy": 0.8}

        def act(thing: str) -> None:
            fields = {"fleet": FLEET, "round": announcement.round, "thing": thing, "status": "evaluated"}
            answer = {**fields, "opened_at": announcement.opened_at, "num_examples": 10, "metrics": metrics}
            notice = UpdateNotice.model_validate(answer)
            self._say(thing, "update", notice, "record_update")

        return act

    def _deployed(self, deployment: dict[str, Any]) -> None:
        version = deployment["components"].get(GLOBAL_MODEL, {}).get("componentVersion", FIRST)
        if version == FIRST or len(self.greengrass.deployments) < 2:
            return
        for thing in self.greengrass.core_devices[deployment["targetArn"]]:
            outcome: ModelOutcome = "refused" if version == self.schedule.scenario.refused else "active"
            notice = ModelNotice(fleet=FLEET, thing=thing, version=version, outcome=outcome)
            self._say(thing, "model", notice, "record_model")

    def _say(self, thing: str, channel: DeviceChannel, message: Message, module: str) -> None:
        self.event(
            module,
            {
                "topic": device_topic(FLEET, thing, channel),
                "payload": base64.b64encode(message.encode()).decode(),
                "received_at": int(self.now().timestamp() * 1000),
            },
        )

    # ------------------------------------------------------------------------------------------------ disturbances

    def _before(self, step: int, task: Task, label: str) -> BaseException | None:
        self._watch()
        if not self.disturbed:
            return None
        for action in self.schedule.plan.get(step, ()):
            self._disturb(action, task)
        return self._error_for(task, label)

    def _disturb(self, action: tuple[Any, ...], task: Task) -> None:
        kind = action[0]
        done = True
        if kind == "stop":
            done = self.main is not None and self.main.status == "RUNNING"
            if self.main is not None:
                self.main.stop()
        elif kind == "timeout":
            done = self.main is not None and self.main.time_out()
        elif kind == "crash":
            self.scheduler.kill(task)
        elif kind in {"kill", "term"}:
            jobs = [one for tasks in self.job_tasks.values() for one in tasks if not one.ended]
            done = bool(jobs)
            for one in jobs[:1]:
                if kind == "kill":
                    self.scheduler.kill(one)
                else:
                    self.scheduler.interrupt(one, StoppedError(143))
        elif kind == "clone":
            done = bool(self.job_tasks)
            for name in list(self.job_tasks)[-1:]:
                self._job(name, int(self.jobs.jobs[name]["Environment"]["FEDGRASS_ROUND"]), original=False)
        elif kind == "delay":
            self.scheduler.delay(task)
        elif kind == "prefer":
            others = [one for one in self.scheduler.running() if one is not task]
            done = bool(others)
            if others:
                self.scheduler.prefer(others[action[1] % len(others)])
        elif kind == "conflict":
            self.pending_errors.setdefault(id(task), []).extend(["conflict"] * action[1])
        elif kind == "throttle":
            self.pending_errors.setdefault(id(task), []).extend(["throttle"] * action[1])
        elif kind == "operate":
            self.operate(action[1])
        else:
            raise NotImplementedError(kind)
        if done:
            self.did[kind] += 1

    def _error_for(self, task: Task, label: str) -> BaseException | None:
        """What DynamoDB answers to a write that meets another, or is one too many."""
        method = label.split(".")[-1].split(" ")[0]
        if not label.startswith("table") or method not in _CONFLICTED or not self.pending_errors.get(id(task)):
            return None
        kind = self.pending_errors[id(task)].pop()
        if kind == "throttle":
            return refusal("ProvisionedThroughputExceededException")
        if method == "transact_write_items":
            return cancelled("TransactionConflict", "None")
        return refusal("TransactionConflictException")

    def _watch(self) -> None:
        """What must hold at every step."""
        open_rounds = []
        for (table, _, key), item in self.store.items.items():
            if table != "rounds" or not key.startswith("round#") or key.count("#") != 1:
                continue
            if item["phase"] != "closed":
                open_rounds.append(key)
            before, now = self.outcomes.get(key), item.get("outcome")
            if (
                before is not None
                and now != before
                and (before, now)
                not in {
                    ("held", "released"),
                    ("advanced", "released"),
                    ("released", "refused"),
                }
            ):
                self.seen.append(f"outcome changed: {key} {before} -> {now}")
            if now is not None:
                self.outcomes[key] = now
        if len(open_rounds) > 1:
            self.seen.append(f"two rounds open: {open_rounds}")

    # ------------------------------------------------------------------------------------------------ what came of it

    def records(self) -> list[RoundRecord]:
        keys = sorted(key for table, _, key in self.store.items if table == "rounds" and key.startswith("round#"))
        return [load_round(self.rounds_table, FLEET, int(key[6:])) for key in keys if key.count("#") == 1]

    def state(self) -> Any:
        return load_state(self.rounds_table, FLEET)

    def version_on(self, *targets: str) -> str:
        """The version that devices have which are in these targets: the newest deployment counts."""
        made = [one for one in self.greengrass.deployments if one["targetArn"] in targets]
        return str(made[-1]["components"].get(GLOBAL_MODEL, {}).get("componentVersion", "none"))

    def ever_deployed(self) -> set[str]:
        found = (one for one in self.greengrass.deployments if one["targetArn"] == GROUP_ARN)
        return {str(one["components"][GLOBAL_MODEL]["componentVersion"]) for one in found}


class _Session:
    def __init__(self, world: World) -> None:
        self._world = world

    def client(self, name: str, **_arguments: Any) -> Any:
        world = self._world
        services = {
            "s3": world.objects,
            "stepfunctions": world.machine,
            "iot-data": world.retained,
            "sagemaker": world.jobs,
            "greengrassv2": world.greengrass,
        }
        return Scheduled(world.scheduler, name, services[name])

    def resource(self, _name: str, **_arguments: Any) -> Any:
        return self

    def Table(self, name: str) -> Any:  # noqa: N802 - boto3's name
        table = {"rounds": self._world.rounds_table, "devices": self._world.devices_table}[name]
        return ScheduledTable(self._world.scheduler, table)


def _module_of(function: str) -> str:
    name = function.removesuffix("Function")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _with_services(module: Any, services: Services, payload: dict[str, Any]) -> Any:
    """Call a module's handler with these services in place of its own."""
    handler = module.handler
    own = dict(handler.__globals__) | {"own_services": lambda: services}
    return FunctionType(handler.__code__, own, "handler", handler.__defaults__)(payload, None)


@cache
def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def first_bundle() -> dict[str, bytes]:
    """A model of one parameter, without a graph that could be evaluated here."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-explorer-") as name:
        folder = Path(name)
        (folder / ARCHITECTURE).write_text("{}")
        tensors.save(folder / PARAMETERS, {"w": np.zeros(4, np.float32)})
        tensor = {"name": "w", "shape": (4,), "dtype": "float32"}
        files = {name: {"sha256": "0" * 64, "bytes": 0} for name in (ARCHITECTURE, PARAMETERS)}
        manifest = Manifest.model_validate(
            {
                "schema": 1,
                "name": "tiny",
                "batch_size": 1,
                **{part: {**tensor, "name": part} for part in ("x", "y", "output")},
                "loss": "mean_squared_error",
                "parameters": [tensor],
                "files": files,
            }
        )
        bundle = Bundle.seal(folder, manifest)
        return {name: bundle.path(name).read_bytes() for name in (ARCHITECTURE, PARAMETERS, MANIFEST)}


@cache
def update(thing: str, number: int, base_sha256: str) -> bytes:
    """A device's update, valid for the base of that digest: its content needs no base."""
    with tempfile.TemporaryDirectory(prefix="fedgrass-explorer-") as name:
        path = Path(name) / "update"
        zeros = {"w": np.zeros(4, np.float32)}
        moved = {"w": np.full(4, 1.0 + THINGS.index(thing), np.float32)}
        manifest = Manifest.model_validate_json(first_bundle()[MANIFEST])
        header = UpdateHeader(
            fleet=FLEET,
            round=number,
            thing=thing,
            base_sha256=base_sha256,
            graph_sha256=manifest.graph_sha256,
            num_examples=10,
            metrics={"loss": 0.5},
        )
        write_update(path, zeros, moved, header, codec="float32")
        return path.read_bytes()


@contextmanager
def _virtual(scheduler: Scheduler) -> Iterator[None]:
    """Let ``time.sleep`` and default clocks be those of the schedule."""
    real_sleep, real_monotonic, real_time = time.sleep, time.monotonic, time.time
    replaced: list[tuple[dict[str, Any], str, Any]] = []

    def sleep(seconds: float) -> None:
        scheduler.sleep(seconds) if scheduler.current is not None else real_sleep(seconds)

    def monotonic() -> float:
        return scheduler.now if scheduler.current is not None else real_monotonic()

    def wall() -> float:
        return START.timestamp() + scheduler.now if scheduler.current is not None else real_time()

    stand_ins = {real_sleep: sleep, real_monotonic: monotonic}
    for function in _functions():
        defaults: dict[str, Any] = function.__kwdefaults__ or {}
        for name, value in defaults.items():
            if callable(value) and value in stand_ins:
                replaced.append((defaults, name, value))
                defaults[name] = stand_ins[value]
    replacing: Any = time
    replacing.sleep, replacing.time = sleep, wall
    try:
        yield
    finally:
        replacing.sleep, replacing.time = real_sleep, real_time
        for before, name, value in replaced:
            before[name] = value


@cache
def _functions() -> list[FunctionType]:
    found = []
    for name, module in list(sys.modules.items()):
        if name.startswith(("cloud.", "fedgrass.")):
            for value in vars(module).values():
                members = vars(value).values() if isinstance(value, type) else [value]
                found += [one for one in members if isinstance(one, FunctionType) and one.__kwdefaults__]
    return found


def order(version: str) -> tuple[int, ...]:
    return version_order(version)
