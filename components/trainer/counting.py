"""When to count the device's examples again, and to try its engine: that takes a process, so it is not done each time."""

from __future__ import annotations

from collections.abc import Callable

from fedgrass.builder_archive import builder_sha256
from fedgrass.bundle import ARCHITECTURE, INFERENCE, INFERENCE_INT8, PARAMETERS, Bundle, Manifest
from fedgrass.data_settings import DataSettings
from fedgrass.edge.settings import RuntimeSettings

# A folder whose files only change inside keeps its time, so it is counted again now and then.
_AGAIN_SECONDS = 600.0
# A device without data, or without its builder, is out of every round: that these are there should be seen soon.
AGAIN_AFTER_TROUBLE_SECONDS = 60.0


class Counting:
    """Remembers what was counted last, and which engine was seen to work.

    Parameters
    ----------
    clock
        Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counted: object = None
        self._parameters = ""
        self._trying: object = None
        self._works: object = None
        self._at = 0.0

    def is_due(self, runtime: RuntimeSettings, model: Bundle, *, problem: bool) -> bool:
        """Whether settings, model or file are others than at the last count, or it is long ago; the caller then counts.

        A model that differs in its parameters alone, as each round's does, has the same examples; it counts as another while
        something is wrong, for it may be what mends it.

        Parameters
        ----------
        runtime
            Where the data are, and what trains.
        model
            The model to count for.
        problem
            Whether there are no examples, or no engine, as far as is known.
        """
        now, engine = self._clock(), _engine(runtime, model)
        found = (runtime.data, engine, _without_parameters(model), _stamp(runtime.data))
        same = found == self._counted and not (problem and model.manifest.parameters_sha256 != self._parameters)
        since = now - self._at
        if same and since < (AGAIN_AFTER_TROUBLE_SECONDS if problem else _AGAIN_SECONDS):
            return False
        self._counted, self._parameters = found, model.manifest.parameters_sha256
        self._at, self._trying = now, engine
        return True

    @property
    def tries_engine(self) -> bool:
        """Whether the count that is due is to open the model too: with the engine that was seen to work it need not.

        LiteRT's needs nothing that the model does not bring, and a round says so if it cannot be loaded.
        """
        return self._trying != self._works

    def ended(self, *, problem: bool) -> None:
        """Note how the count went."""
        if not problem:
            self._works = self._trying

    def doubt(self) -> None:
        """Have the next count be due, and try the engine: a round has failed."""
        self._counted = self._works = None


def _engine(runtime: RuntimeSettings, model: Bundle) -> object:
    """What an engine is made of, but for the parameters, which change with each round; None for LiteRT's."""
    manifest = model.manifest
    if runtime.engine == "litert" and manifest.graph_file != ARCHITECTURE:
        return None
    return (
        runtime.engine,
        runtime.builder,
        tuple(sorted(runtime.builders.items())),
        manifest.graph_sha256,
        builder_sha256(model),
    )


def _without_parameters(model: Bundle) -> Manifest:
    """What examples are counted by: a manifest but for what each round changes."""
    files = {
        name: file for name, file in model.manifest.files.items() if name not in (PARAMETERS, INFERENCE, INFERENCE_INT8)
    }
    return model.manifest.model_copy(update={"version": "", "files": files})


def _stamp(data: DataSettings) -> tuple[int, int, int] | None:
    """What changes with a file that is rewritten, or a folder that gains a file; None without one."""
    try:
        found = data.file.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
