"""A helper as a job: it hears the fleet's announcements, and answers by objects in the fleet's bucket.

What it answers, and what not, is `fedgrass.secure.helper.Helper`'s affair, as on a core device.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.cloud.fleet_access import FleetAccess
from fedgrass.errors import MessageError
from fedgrass.logs import Log
from fedgrass.protocol.messages import Announcement
from fedgrass.protocol.names import command_key, sum_command, sum_request_key
from fedgrass.secure.request import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from fedgrass.secure.helper import Helper

_POLL_SECONDS = 2.0


@dataclass
class HelperHost:
    """One helper's job.

    Parameters
    ----------
    access
        The fleet.
    helper
        What answers.
    fleet, name
        Whose rounds it hears, and what it is called there.
    work
        Folder for a request and an answer; nothing in it has to last.
    """

    access: FleetAccess
    helper: Helper
    fleet: str
    name: str
    work: Path
    _done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._log = Log(__name__, fleet=self.fleet, thing=self.name)

    def serve(self, stay_seconds: float) -> int:
        """Answer until nothing was asked for so long.

        Parameters
        ----------
        stay_seconds
            Counted again from each answer.

        Returns
        -------
        int
            How many requests were answered.

        Raises
        ------
        ClientError, BotoCoreError, Boto3Error
            If AWS refused something, or did not answer, up to the end.
        """
        until, answered = self.access.clock() + stay_seconds, 0
        failed: Exception | None = None
        while self.access.clock() < until:
            try:
                new, failed = self.look(), None
            except (ClientError, BotoCoreError, Boto3Error) as error:
                # A network that is away for a while must not cost the round its helper.
                self._log.log_event("fleet_not_reached", reason=str(error))
                new, failed = False, error
            if new:
                until, answered = self.access.clock() + stay_seconds, answered + 1
            else:
                self.access.sleep(_POLL_SECONDS)
        if failed is not None:
            raise failed
        return answered

    def look(self) -> bool:
        """Answer what is asked now; returns whether anything new was.

        A request that is refused is done with as well: it stays what it is.
        """
        announcement = self._announced()
        if announcement is None or announcement.sums is None:
            return False
        sums = announcement.sums
        command = sum_command(announcement.round, sums.digest)
        if self.name not in sums.requests or command in self._done:
            return False
        try:
            self._answer(announcement, command, sums.requests[self.name])
        except MessageError as error:
            self._log.log_event("sum_refused", round=announcement.round, reason=str(error))
        # After the answer has arrived: what fails on its way is tried again.
        self._done.add(command)
        return True

    def _announced(self) -> Announcement | None:
        try:
            found = self.access.announcement(self.fleet)
        except MessageError as error:
            self._log.log_event("announcement_refused", reason=str(error))
            return None
        return found if found is not None and found.task == "sum" and found.fleet == self.fleet else None

    def _answer(self, announcement: Announcement, command: str, sha256: str) -> None:
        bucket = announcement.upload.bucket
        # The key follows from names that this helper knows: an announcement cannot have it read anything else.
        content = self._request(bucket, sum_request_key(self.fleet, announcement.round, self.name), sha256)
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            path = Path(folder) / "answer"
            self.helper.respond(content, path)
            self.access.s3.upload_file(str(path), bucket, command_key(self.fleet, self.name, command))
            self._log.log_event("sum_answered", round=announcement.round, command=command, bytes=path.stat().st_size)

    def _request(self, bucket: str, key: str, sha256: str) -> bytes:
        # One that cannot be read is asked for again: it is written before it is announced.
        found = self.access.s3.get_object(Bucket=bucket, Key=key)
        # Before any of it is read: the size is what S3 says, not what the cloud chose to send.
        if found["ContentLength"] > MAX_REQUEST_BYTES:
            raise MessageError(f"request: {found['ContentLength']} bytes; at most {MAX_REQUEST_BYTES} are accepted")
        content = found["Body"].read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise MessageError(f"s3://{bucket}/{key}: is not what was announced (SHA-256)")
        return content
