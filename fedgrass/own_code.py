"""The user's own code, such as a builder, a Flower client or a loader: whatever it raises is reported as itself."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgrass.errors import EngineError, FedgrassError
from fedgrass.logs import Log

_LOG = Log("fedgrass.own_code")
_OURS = Path(__file__).parent


class Passing(Exception):  # noqa: N818 - control flow, not a failure
    """Base of what passes through the user's own code and is not a failure of it."""


@contextmanager
def own_code(what: str, kind: type[FedgrassError] = EngineError) -> Iterator[None]:
    """Turn what the user's code raises into an error that names it and where it came from, and log its traceback.

    Parameters
    ----------
    what
        What was done, for the message: ``training``.
    kind
        The error to raise.

    Raises
    ------
    FedgrassError
        Of that kind. Errors of ours, and `MemoryError`, pass as they are.

    Examples
    --------
    >>> with own_code("training"):
    ...     raise EngineError("no such engine")
    Traceback (most recent call last):
    fedgrass.errors.EngineError: no such engine
    """
    try:
        yield
    except (FedgrassError, MemoryError, Passing):
        raise
    # SystemExit as well: a script's sys.exit() must not take the component with it.
    except (Exception, SystemExit) as error:
        reason = as_itself(error)
        _LOG.log_event("own_code_failed", what=what, reason=reason)
        raise kind(f"{what}: {reason}") from error


def as_itself(error: BaseException) -> str:
    """Return an exception's name and message, and the innermost line of code that is neither ours nor a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    # The user looks for the line of their own that failed; the deepest one is most often in a library.
    own = [one for one in frames if _OURS not in Path(one.filename).parents and "site-packages" not in one.filename]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not (shown := own or frames):
        return text
    last = shown[-1]
    return f"{text} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
