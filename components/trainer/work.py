"""The trainer's child: ``python -m components.trainer.work PARENT`` does one task, and ends.

It reads lines of `fedgrass.edge.child` from its standard input, first a `Task`, then each new `Order`, and answers with a
`Report` a line. When its input ends, its component has, and so does it.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from components.trainer.task import Order, Report, Result, Task
from fedgrass import logs
from fedgrass.downloads import ObjectStore
from fedgrass.edge.child import EXIT_MEMORY, become_child
from fedgrass.edge.downloads import s3_client
from fedgrass.edge.resource_policy import UnavailableError
from fedgrass.errors import DataError, FedgrassError, MessageError, PrivacyLimitError
from fedgrass.logs import Log
from fedgrass.own_code import as_itself
from fedgrass.protocol.message import as_reason

if TYPE_CHECKING:
    from components.trainer.workspace import Workspace


def lower_priority(level: int) -> None:
    """Lower the priority of this thread and of those it starts: the component itself stays responsive."""
    thread = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, thread) + level
    os.setpriority(os.PRIO_PROCESS, thread, min(nice, 19))


def serve(
    orders_in: BinaryIO,
    reports_out: io.RawIOBase,
    log: Log,
    *,
    orphaned: Callable[[], None],
    s3: Callable[[], ObjectStore] = s3_client,
) -> int:
    """Do one task; returns the exit code.

    Parameters
    ----------
    orphaned
        Called, on a thread, when the orders end.
    """
    # The first line is the task; all later ones are orders.
    task = Task.decode(orders_in.readline())
    lower_priority(task.settings.nice_level)
    # Imported at the task's own priority: NumPy and what stands on it.
    from components.trainer.workspace import Orders, Workspace

    orders = Orders()
    one_at_a_time = threading.Lock()

    def say(report: Report) -> None:
        # Troubles are told from any thread, and half a line within another would be no JSON.
        with one_at_a_time:
            reports_out.write(report.encode())

    def listen() -> None:
        while line := orders_in.readline():
            orders.given(Order.decode(line))
        orphaned()

    # On a thread, since training does not read; the end of the input is the end of the component.
    threading.Thread(target=listen, name="orders", daemon=True).start()
    log = log.bind(fleet=task.runtime.fleet)
    if task.announcement is not None:
        log = log.bind(round=task.announcement.round)
    say(Report(say="began"))
    log.on_trouble(lambda trouble: say(Report(say="trouble", reason=as_reason(trouble))))
    try:
        result = _result(Workspace(task, orders, say, s3, log))
    except MemoryError:
        return EXIT_MEMORY
    say(Report(say="ended", result=result))
    return 0


def _result(place: Workspace) -> Result:
    from fedgrass.engines.base import StopTraining

    try:
        return _done(place)
    except StopTraining:
        return Result(status="stopped")
    except (DataError, UnavailableError, MessageError, PrivacyLimitError) as error:
        return Result(status="declined", reason=as_reason(str(error)))
    except FedgrassError as error:
        return Result(status="failed", reason=as_reason(str(error)))
    except OSError as error:
        return Result(status="failed", reason=as_reason(f"{error.filename or 'a file'}: {error.strerror}"))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a loader or an engine of the user's own may raise anything
        place.log.log_event("work_crashed")
        return Result(status="failed", reason=as_reason(as_itself(error)))


def _done(place: Workspace) -> Result:
    from components.trainer import command_work, drift_work, fine_tuning_work, round_work
    from components.trainer.known import known_model

    task = place.task
    if task.announcement is not None:
        return round_work.work_on(task.announcement, place)
    if task.command is not None:
        return command_work.do(task.command, place)
    if task.activated is not None:
        return fine_tuning_work.fine_tune(task.activated, place)
    model = known_model(place.store, task.work)
    if model is None:
        return Result(status="done")
    if task.watched is not None:
        return drift_work.compare(task.watched, model, place)
    if task.tries_engine:
        place.try_engine(model)
    return Result(status="done", num_examples=place.count(model))


def main() -> int:
    """Be the child of the process whose number is given."""
    orders, reports = become_child(int(sys.argv[1]))
    logs.configure()
    log = Log("components.trainer", thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    orders_in, reports_out = os.fdopen(orders, "rb"), os.fdopen(reports, "wb", buffering=0)
    return serve(orders_in, reports_out, log, orphaned=lambda: os._exit(1))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: an engine's native libraries take their time to unload, and its threads must not hold the process.
    os._exit(code)
