"""One user at a time of something on this machine; the lock ends with its holder's process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedgrass.errors import ConfigurationError

# A file system that knows no locks, as some that several machines share: whoever uses it goes without.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@contextlib.contextmanager
def sole_user(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; raises `ConfigurationError` with the holder's process id if another holds it.

    Parameters
    ----------
    path
        The file; made if absent.
    what
        What it stands for, for the error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not "w": that would empty the holder's own file before the lock is refused.
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise ConfigurationError(
                f"{path}: {what} is in use by process {holder}; wait for it, or stop it with: kill {holder}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
