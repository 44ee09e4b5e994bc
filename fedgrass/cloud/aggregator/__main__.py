"""``python -m fedgrass.cloud.aggregator``: one round's Processing job.

The round is named by the environment (`fedgrass.cloud.aggregator.config.JobSettings`), everything else by its record. Exit
codes: 0 the round has its report, whatever the outcome; 1 it could not be finished now; 2 the environment is wrong. The exit
message is a line of JSON, or the error. With the argument ``serve`` it is the container of an endpoint: `fedgrass.cloud.serving`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.cloud.aggregator.config import Container, JobSettings
from fedgrass.errors import ConfigurationError, FedgrassError, OutOfMemoryError, TransferError
from fedgrass.logs import Log, configure
from fedgrass.protocol.names import report_key

if TYPE_CHECKING:
    from fedgrass.cloud.aggregator.s3 import Bucket
    from fedgrass.protocol.records import RoundRecord
    from fedgrass.protocol.report import RoundReport

log = Log("fedgrass.cloud.aggregator")

_STOPPED = 128 + signal.SIGTERM
_KILLED = 128 + signal.SIGKILL  # what the kernel leaves where it ends a process for its memory
_UNWIND_SECONDS = 30  # of the 120 that SageMaker gives a container


def main(environment: Mapping[str, str]) -> int:
    """Run the job and return its exit code."""
    configure()
    container = Container.of(environment)
    try:
        settings = container.settings(environment)
        said = _run(settings, *container.instance(environment))
        # Only the first instance has a word: SageMaker shows one exit message for the job.
        if said is not None:
            container.say(said)
    except FedgrassError as error:
        log.log_event("job_failed", code=error.code, reason=str(error))
        container.say(f"{error.code}: {error}")
        # 2 for what a repetition cannot mend.
        return 2 if isinstance(error, ConfigurationError) else 1
    except MemoryError as error:
        log.log_event("job_failed", code=OutOfMemoryError.code, reason=str(error))
        container.say(f"{OutOfMemoryError.code}: {error}")
        # The same code as when the kernel kills it: whoever reads the job's end needs one rule for both.
        return _KILLED
    return 0


def _run(settings: JobSettings, index: int, count: int) -> str | None:
    # Imported late: a wrong environment is told at once.
    from botocore.exceptions import BotoCoreError, ClientError

    from fedgrass.cloud.aggregator.clients import connect
    from fedgrass.cloud.aggregator.instances import Instance
    from fedgrass.cloud.aggregator.job import RoundJob
    from fedgrass.cloud.aggregator.report import summary
    from fedgrass.cloud.aggregator.s3 import RoundUpdates
    from fedgrass.protocol.tables import load_round

    try:
        clients, s3 = connect(settings)
        record = load_round(clients.rounds, settings.fleet, settings.round)
        source = RoundUpdates(s3, settings.bucket, settings.fleet, settings.round)
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as scratch:
            instance = Instance(index, count)
            job = RoundJob(record, clients, source, Path(scratch), instance=instance)
            # The other instances sum their lanes and leave; everything that decides is the first one's.
            if index > 0:
                job.contribute()
                return None
            report = job.run()
            _track(record, report, clients.bucket)
    except (ClientError, BotoCoreError) as error:
        raise TransferError(f"AWS refused or did not answer: {error}") from error
    return summary(report)


def _track(record: RoundRecord, report: RoundReport, bucket: Bucket) -> None:
    """Tell the tracking server, where there is one: a service for people, so its failure is no failure of the round."""
    tracking = record.settings.tracking
    if not tracking.uri:
        return
    import boto3

    from fedgrass.cloud.aggregator.tracking import Tracking

    server = Tracking(tracking.uri, boto3.Session().get_credentials())
    report_uri = bucket.uri(report_key(record.fleet, record.round))
    try:
        run = server.follow(record, report, experiment=tracking.experiment or record.fleet, report_uri=report_uri)
    except TransferError as error:
        log.log_event("round_not_tracked", round=record.round, reason=str(error))
    else:
        log.log_event("round_tracked", round=record.round, run=run)


def obey_stop() -> None:
    """End at SIGTERM: as a container's first process Python would ignore it, and work on until it is killed.

    What runs is unwound, so that nothing stays announced. If that takes too long, the process ends as it is; whoever comes next
    does what is left to do.
    """

    def stop(_signal: int, _frame: object) -> None:
        # SIGALRM ends it for good if unwinding hangs, such as in a request that is not answered.
        signal.alarm(_UNWIND_SECONDS)
        # An exception, so that `finally` blocks run: a question to the devices is withdrawn there.
        raise SystemExit(_STOPPED)

    def give_up(_signal: int, _frame: object) -> None:
        os._exit(_STOPPED)

    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, stop)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:  # how SageMaker starts the container of an endpoint
        from fedgrass.cloud.serving.server import main as serve

        sys.exit(serve())
    obey_stop()
    sys.exit(main(os.environ))
