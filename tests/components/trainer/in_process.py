"""The trainer's child on a thread of this process: the same loop over the same pipes, so that a test can look at its engine."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from components.trainer.work import serve
from fedgrass.downloads import ObjectStore
from fedgrass.edge.child import MAX_LINE_BYTES
from fedgrass.logs import Log


class InProcess:
    """Cannot be killed: asked for that, it ends at its next batch."""

    def __init__(self, s3: Callable[[], ObjectStore]) -> None:
        orders, self._in = os.pipe()
        self._out, reports = os.pipe()
        self._code = 0
        self._thread = threading.Thread(target=self._run, args=(orders, reports, s3), daemon=True)
        self._thread.start()

    def _run(self, orders: int, reports: int, s3: Callable[[], ObjectStore]) -> None:
        orders_in = os.fdopen(orders, "rb")
        with os.fdopen(reports, "wb", buffering=0) as reports_out:
            self._code = serve(orders_in, reports_out, Log("test"), orphaned=orders_in.close, s3=s3)

    def tell(self, line: bytes) -> bool:
        try:
            return os.write(self._in, line) == len(line)
        except OSError:
            return False

    def read(self, timeout: float) -> bytes | None:
        ready, _, _ = select.select([self._out], [], [], timeout)
        return os.read(self._out, MAX_LINE_BYTES) if ready else None

    def kill(self) -> None:
        self.tell(b'{"stop": true}\n')

    def died_of(self) -> str:
        self._thread.join()
        for descriptor in (self._in, self._out):
            if descriptor >= 0:
                os.close(descriptor)
        self._in = self._out = -1
        return f"with exit code {self._code}" if self._code else ""
