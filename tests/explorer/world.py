"""A fleet's account and what runs in it: the real functions, the real job, two devices, an operator, and disturbances."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from fedgrass.account import Account
from fedgrass.bundle import MANIFEST, Manifest
from fedgrass.cloud.aggregator import manual_release
from fedgrass.cloud.aggregator.job import RoundJob
from fedgrass.cloud.aggregator.registry import Registry
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.aggregator.s3 import Bucket, RoundUpdates
from fedgrass.cloud.rounds.services import Services
from fedgrass.cloudformation import StackOutputs
from fedgrass.errors import FedgrassError
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import (
    GLOBAL_MODEL,
    model_prefix,
    parameters_key,
    version_order,
)
from fedgrass.protocol.records import RoundRecord, to_attribute
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round, load_state, save_settings, set_current_model
from fedgrass.rounds_api import cancel_round, resume_run
from tests.explorer.devices import Devices
from tests.explorer.disturbances import disturb, error_for
from tests.explorer.dynamo import Store
from tests.explorer.files import first_bundle, memory
from tests.explorer.machine import Execution, Machine
from tests.explorer.scenario import BUCKET, CANARIES_ARN, FIRST, FLEET, GROUP_ARN, THINGS, Schedule, StoppedError
from tests.explorer.scheduler import KilledError, Scheduler, Task
from tests.explorer.services import START, Greengrass, Jobs, Objects, Retained, Scheduled, ScheduledTable
from tests.explorer.virtual import virtual

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
    "FEDGRASS_STATE_MACHINE_ARN": "arn:aws:states:us-east-1:123456789012:stateMachine:fedgrass-mill-round",
}
_PATIENCE = 7200  # seconds after which somebody starts another round
_RETRIED = 2  # times that Lambda repeats an event whose function failed


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
        self.devices = Devices(self)
        self.retained = Retained(self.devices.announced)
        self.jobs = Jobs(self._job_started, self._job_stop)
        self.greengrass = Greengrass(self.devices.deployed, self.now)
        self.greengrass.core_devices = {GROUP_ARN: list(THINGS), CANARIES_ARN: ["a"]}
        self.main: Execution | None = None
        self.disturbed = False  # whether the plan is in force
        self.deliveries = 0
        self.job_tasks: dict[str, list[Task]] = {}
        self.pending_errors: dict[int, list[str]] = {}
        self.outcomes: dict[str, str] = {}
        self.seen: list[str] = []
        self.did: Counter[str] = Counter()
        self.operated: list[str] = []
        self.operator_errors: list[str] = []
        self.person_died = False
        self.cancelled = False  # whether somebody was told that the run is
        self._prepare()

    # ------------------------------------------------------------------------------------------------ the account

    def session(self) -> Any:
        return _Session(self)

    def services(self) -> Services:
        limit = {"FEDGRASS_ROUNDS_OF_AN_EXECUTION": str(self.schedule.scenario.of_an_execution)}
        return Services(self.session(), _ENVIRONMENT | limit, clock=self.now)

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
            "state_machine_arn": _ENVIRONMENT["FEDGRASS_STATE_MACHINE_ARN"],
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
        with virtual(self.scheduler):
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
            if scenario.resumes:
                self.operate("resume")
                self.scheduler.run()
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
            elif kind == "cancel":
                cancel_round(account, "by hand")
                self.cancelled = True
            elif kind == "resume":
                resume_run(account, {})
            elif kind == "deploy":
                self._stale_deployment()
            else:
                raise NotImplementedError(kind)
            if kind not in {"cancel", "resume"}:
                self.operated.append(kind)

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                self.operator_errors.append(f"{kind}: {error}")
                self.person_died |= isinstance(error, KilledError)
                if not isinstance(error, (FedgrassError, KilledError)):
                    self.seen.append(f"person meets an error of AWS: {kind}: {error!r}")

        self.scheduler.spawn(f"operator {kind}", act, done)

    def run_of_main(self) -> list[Execution]:
        """The executions of the run that the main one began, in their order."""
        run = [] if self.main is None else [self.main]
        for one in self.machine.executions.values():
            if run and one.input.get("run", {}).get("previous") == run[-1].arn:
                run.append(one)
        return run

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
        task = self.run_job(name, int(environment["FEDGRASS_ROUND"]), original=True)
        self.scheduler.later(limit, lambda: self._end_job(task))

    def run_job(self, name: str, number: int, *, original: bool) -> Task:
        def work() -> None:
            with tempfile.TemporaryDirectory(prefix="fedgrass-explorer-", dir=memory()) as scratch:
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

    # ------------------------------------------------------------------------------------------------ disturbances

    def _before(self, step: int, task: Task, label: str) -> BaseException | None:
        self._watch()
        if not self.disturbed:
            return None
        for action in self.schedule.plan.get(step, ()):
            disturb(self, action, task)
        return error_for(self, task, label)

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


def order(version: str) -> tuple[int, ...]:
    return version_order(version)
