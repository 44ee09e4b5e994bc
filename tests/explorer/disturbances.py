"""What a schedule does to a world between two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.explorer.dynamo import cancelled, refusal
from tests.explorer.scenario import StoppedError
from tests.explorer.scheduler import Task

if TYPE_CHECKING:
    from tests.explorer.world import World

_CONFLICTED = {"put_item", "update_item", "transact_write_items", "delete_item"}


def disturb(world: World, action: tuple[Any, ...], task: Task) -> None:
    """Do one action of the plan."""
    kind = action[0]
    done = True
    if kind == "stop":
        run = world.run_of_main()
        done = any(one.status == "RUNNING" for one in run)
        for execution in run[-1:]:
            execution.stop()
    elif kind == "stop first":
        done = world.main is not None and world.main.status == "RUNNING"
        if world.main is not None:
            world.main.stop()
    elif kind == "timeout":
        done = any(one.time_out() for one in world.run_of_main())
    elif kind == "crash":
        world.scheduler.kill(task)
    elif kind in {"kill", "term"}:
        jobs = [one for tasks in world.job_tasks.values() for one in tasks if not one.ended]
        done = bool(jobs)
        for one in jobs[:1]:
            if kind == "kill":
                world.scheduler.kill(one)
            else:
                world.scheduler.interrupt(one, StoppedError(143))
    elif kind == "clone":
        done = bool(world.job_tasks)
        for name in list(world.job_tasks)[-1:]:
            world.run_job(name, int(world.jobs.jobs[name]["Environment"]["FEDGRASS_ROUND"]), original=False)
    elif kind == "delay":
        world.scheduler.delay(task)
    elif kind == "prefer":
        others = [one for one in world.scheduler.running() if one is not task]
        done = bool(others)
        if others:
            world.scheduler.prefer(others[action[1] % len(others)])
    elif kind == "conflict":
        world.pending_errors.setdefault(id(task), []).extend(["conflict"] * action[1])
    elif kind == "throttle":
        world.pending_errors.setdefault(id(task), []).extend(["throttle"] * action[1])
    elif kind == "operate":
        world.operate(action[1])
    else:
        raise NotImplementedError(kind)
    if done:
        world.did[kind] += 1


def error_for(world: World, task: Task, label: str) -> BaseException | None:
    """What DynamoDB answers to a write that meets another, or is one too many."""
    method = label.split(".")[-1].split(" ")[0]
    if not label.startswith("table") or method not in _CONFLICTED or not world.pending_errors.get(id(task)):
        return None
    kind = world.pending_errors[id(task)].pop()
    if kind == "throttle":
        return refusal("ProvisionedThroughputExceededException")
    if method == "transact_write_items":
        return cancelled("TransactionConflict", "None")
    return refusal("TransactionConflictException")
