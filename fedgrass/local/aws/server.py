"""The local AWS account: every service, wired."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from moto.core.config import default_user_config

from fedgrass.errors import ConfigurationError
from fedgrass.local.aws import (
    alarms,
    cloudformation,
    dynamodb,
    events,
    iot,
    memory,
    metrics,
    model_registry,
    moto_state,
    rules,
    s3,
    scheduled_rules,
    states,
)
from fedgrass.local.aws.access import Guard
from fedgrass.local.aws.account import ACCOUNT, REGION, Keys, client, client_environment
from fedgrass.local.aws.api import Layer
from fedgrass.local.aws.broker import EmbeddedBroker
from fedgrass.local.aws.bus import Bus
from fedgrass.local.aws.children import Children
from fedgrass.local.aws.clock import Clock
from fedgrass.local.aws.contention import Contention, Lag
from fedgrass.local.aws.endpoint import Application, Server
from fedgrass.local.aws.functions.runtime import LambdaRuntime
from fedgrass.local.aws.greengrass.service import Greengrass
from fedgrass.local.aws.hosting import Hosting
from fedgrass.local.aws.iot_data import IotData
from fedgrass.local.aws.metrics import Metrics
from fedgrass.local.aws.objects import Objects
from fedgrass.local.aws.peers import Peers
from fedgrass.local.aws.processing.job import Surroundings
from fedgrass.local.aws.processing.service import Processing
from fedgrass.local.aws.training import Training

READY_FILE = "endpoint.json"


class LocalAws:
    """An AWS account in this process.

    Parameters
    ----------
    state
        Folder of this account: the ready file, logs, and Processing folders. One process at a time owns it.
    port
        Of the endpoint; 0 takes a free one.
    mqtt
        Address of a broker to use as IoT Core; an embedded one is started if None.
    processing_command
        What a Processing job without an entry point runs, in place of its image.
    busy, lag, seed
        Of `Contention` and `Lag`.
    accounts
        Folder by which accounts find each other: see `Peers`.
    stopped_clock
        Whether the time of schedules and alarms passes only when it is advanced: see `Clock`.
    """

    def __init__(
        self,
        state: Path,
        *,
        port: int = 0,
        mqtt: tuple[str, int] | None = None,
        processing_command: Sequence[str] = ("python", "-m", "fedgrass.cloud.aggregator"),
        busy: float = 0.0,
        lag: float = 0.0,
        seed: int = 0,
        accounts: Path | None = None,
        stopped_clock: bool = False,
    ) -> None:
        self.state = state.resolve()
        self._cleanup = contextlib.ExitStack()
        self._port = port
        self._mqtt = mqtt
        self._processing_command = processing_command
        self._keys = Keys.new()
        self._contention = Contention(busy, seed=seed)
        self._lag = Lag(lag)
        self._peers = Peers(accounts)
        self._clock = Clock(stopped=stopped_clock)
        self._metrics = Metrics(now=self._clock.now, shown=self._clock.shown)

    def start(self) -> dict[str, object]:
        """Start everything, then write and return the ready file's content.

        Raises
        ------
        ConfigurationError
            If another process owns the state folder or the port is taken.
        TransferError
            If the broker cannot be reached.
        """
        with contextlib.ExitStack() as starting:
            ready = self._start(starting)
            self._cleanup = starting.pop_all()
        return ready

    def stop(self) -> None:
        """Stop everything, in the reverse order."""
        self._cleanup.close()

    def _start(self, cleanup: contextlib.ExitStack) -> dict[str, object]:
        # First: all that follows writes into the folder or deletes from it.
        self._own_state(cleanup)
        # Started before all services and so stopped after them: each publishes to it.
        host, port = self._mqtt or self._embedded_broker(cleanup)
        bus = Bus(host, port)
        children = Children()
        cleanup.callback(children.stop_all)

        application = Application(self._contention)
        # Bound before the services are made, which need its address; it answers only when all of them are there.
        server = self._bind(Guard(application, self._keys, moto_state.is_session_key, self._peers))
        endpoint_url = f"http://127.0.0.1:{server.port}"
        account = partial(client, endpoint_url=endpoint_url, keys=self._keys)
        environment = client_environment(endpoint_url, self._keys)
        cleanup.callback(server.stop)
        # moto's own clients read the process's environment.
        os.environ.update(environment)
        os.environ["MOTO_PORT"] = str(server.port)  # moto's state machine interpreter calls services there
        default_user_config["stepfunctions"] = {"execute_state_machine": True}
        self._repair_moto(account)
        self._resource_types = cloudformation.register(account)

        objects = Objects(account("s3"))
        greengrass = Greengrass(
            objects=objects,
            target_exists=moto_state.target_exists,
            things_of=moto_state.things_of,
            publish=bus.publish,
            emit=events.emit,
        )
        cleanup.callback(greengrass.stop)
        functions = LambdaRuntime(
            functions=moto_state.functions,
            state=self.state,
            children=children,
            environment=environment,
            lost=events.to_queue(account("sqs"), moto_state.failure_destination),
            told=lambda name, outcome: self._metrics.of_function(name, outcome.written, failed=bool(outcome.error)),
        )
        cleanup.callback(functions.stop)
        iot_data = IotData(bus)
        step_functions = account("stepfunctions")
        delivery = events.Delivery(
            {"lambda": functions.send, "states": states.starter(step_functions)},
            [self._metrics.of_failed_delivery, events.to_dead_letters(account("sqs"))],
        )
        cleanup.callback(delivery.stop)
        scheduled = scheduled_rules.ScheduledRules(
            now=self._clock.now, send=delivery.send, repeats=self._contention.repeats
        )
        surroundings = Surroundings(
            state=self.state,
            objects=objects,
            children=children,
            command=list(self._processing_command),
            environment=environment,
        )
        topic_rules = _topic_rules(account, functions, bus)
        cleanup.callback(topic_rules.stop)
        bus.add_handler(greengrass.handle)
        bus.add_handler(topic_rules.handle)
        application.layers |= {
            "clock": self._clock.layer,
            "greengrass": greengrass.layer,
            "iot": self._lag.layer,
            "iotdata": iot_data.layer,
            "lambda": functions.layer,
            "s3": s3.layer,
            "sagemaker": _sagemaker(surroundings),
            "states": states.layer,
        }
        application.on_change("iot", "cloudformation", call=greengrass.deployments.jobs.refresh)
        application.on_change("lambda", "cloudformation", call=functions.refresh)
        application.on_change("events", "cloudformation", call=scheduled.refresh)
        application.on_change("events", "cloudformation", call=self._clock.look)
        # Last, and in this order: backends loaded, messages flowing, then requests. What is asked first must find all
        # of it.
        application.warm()
        bus.start()
        cleanup.callback(bus.stop)
        self._clock.drive([scheduled, alarms.Alarms(now=self._clock.now, metrics=self._metrics)])
        cleanup.callback(self._clock.stop)
        server.start()
        return self._write_ready(cleanup, endpoint_url, host, port)

    def _repair_moto(self, account: Callable[..., Any]) -> None:
        # Before any service is used: what moto made before a repair would keep its old ways.
        memory.repair(self.state / "objects")
        states.repair(self._metrics.of_executions(events.emit), self._keys)
        metrics.repair(self._clock.now)
        alarms.repair(alarms.Actions(events.emit, alarms.to_topics(cache(account)), self._clock.now))
        dynamodb.repair()
        scheduled_rules.repair()
        iot.repair()
        s3.repair()

    def _own_state(self, cleanup: contextlib.ExitStack) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        lock = cleanup.enter_context((self.state / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"Another local AWS owns {self.state}. Stop it, or give --state another folder."
            ) from error
        for folder in ("functions", "processing", "training", "hosting", "objects"):  # of what an earlier process knew
            shutil.rmtree(self.state / folder, ignore_errors=True)

    def _embedded_broker(self, cleanup: contextlib.ExitStack) -> tuple[str, int]:
        broker = EmbeddedBroker()
        cleanup.callback(broker.stop)
        broker.start()
        return broker.host, broker.port

    def _bind(self, application: Guard) -> Server:
        try:
            return Server(application, self._port)
        except (OSError, SystemExit) as error:  # werkzeug exits when the port is taken
            raise ConfigurationError(f"Port {self._port} is taken: give another, or 0 for a free one.") from error

    def _write_ready(self, cleanup: contextlib.ExitStack, endpoint_url: str, host: str, port: int) -> dict[str, object]:
        ready = {
            "endpoint_url": endpoint_url,
            "mqtt_host": host,
            "mqtt_port": port,
            "region": REGION,
            "account": ACCOUNT,
            "pid": os.getpid(),
            "access_key": self._keys.access_key,
            "secret_key": self._keys.secret_key,
        }
        path = self.state / READY_FILE
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        partial.touch(0o600)  # the keys are for whoever may read this folder's owner's files
        partial.write_text(json.dumps(ready, indent=2))
        partial.replace(path)
        cleanup.callback(path.unlink, missing_ok=True)
        joined = self._peers.join(ready)
        if joined is not None:
            cleanup.callback(joined.unlink, missing_ok=True)
        return ready


def _sagemaker(surroundings: Surroundings) -> Layer:
    """Return what answers SageMaker's requests: the first of its parts that knows one."""
    parts = [
        model_registry.layer,
        Processing(surroundings, events.emit).layer,
        Training(surroundings).layer,
        Hosting(surroundings).layer,
    ]
    return lambda request: next(filter(None, (part(request) for part in parts)), None)


def _topic_rules(account: Callable[..., Any], functions: LambdaRuntime, bus: Bus) -> rules.RuleEngine:
    """Return the engine of IoT's rules, with the actions that the template uses."""
    return rules.RuleEngine(
        moto_state.topic_rules,
        {
            "dynamoDBv2": rules.put_item(account("dynamodb")),
            "lambda": rules.invoke_function(functions.send),
            "cloudwatchLogs": rules.put_log_event(account("logs")),
            "republish": rules.republish(bus),
        },
    )
