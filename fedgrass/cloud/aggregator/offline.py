"""The same aggregation on folders, without AWS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation, AggregationOptions, aggregate
from fedgrass.cloud.aggregator.server_state import STATE, read_state, write_state
from fedgrass.cloud.aggregator.sources import Folder
from fedgrass.cloud.aggregator.trusted import own_update, with_own_update
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.data import ArrayDataset
from fedgrass.data.evaluation_set import MAX_EVALUATION_BYTES
from fedgrass.data.loaders import load_npz
from fedgrass.errors import ConfigurationError
from fedgrass.inference import write_bundle
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.messages import FitTask
from fedgrass.protocol.names import next_version
from fedgrass.strategies import Strategy, strategy_named


def aggregate_folder(
    base_dir: Path,
    updates_dir: Path,
    output_dir: Path,
    strategy: Strategy | None = None,
    *,
    checks: Checks | None = None,
    evaluation: Path | None = None,
    version: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Aggregation:
    """Combine the updates in a folder and write the new model's bundle.

    Parameters
    ----------
    base_dir
        The bundle that the updates are differences from.
    updates_dir
        Holds ``<thing>.safetensors`` or ``<thing>/update.safetensors``. Updates of any fleet and round are taken, as
        long as base and graph are right.
    output_dir
        Where the new bundle is written; untouched if no update is good.
    strategy
        Federated averaging if not given.
    checks
        Bounds on updates; the settings' defaults if not given.
    evaluation
        ``.npz`` of the operator's examples, for the strategy ``trust``; its update is trained as a round's defaults say.
    version
        Of the new bundle; the base's minor version plus one if not given.
    progress
        Told of the bytes of each update that is done with.

    Raises
    ------
    BundleError
        If ``base_dir`` holds no sound bundle.
    ConfigurationError
        If there is no such folder of updates, or the new bundle cannot be written to its place.

    Examples
    --------
    >>> import fedgrass
    >>> from fedgrass.data.digits import digits_bundle
    >>> Path("updates").mkdir()
    >>> _ = Path("updates/mallory.safetensors").write_text("not an update")
    >>> result = fedgrass.aggregate(digits_bundle(), Path("updates"), Path("next"))
    >>> [(row.thing, row.used) for row in fedgrass.rows(result)], Path("next").exists()
    ([('mallory', False)], False)
    """
    # Writing there would mix the files of two models, and lose the base.
    if output_dir.resolve() == base_dir.resolve():
        raise ConfigurationError(f"{output_dir}: is the base's own folder; the new model goes to another one")
    if not updates_dir.is_dir():
        raise ConfigurationError(f"{updates_dir}: expected a folder of updates")
    base = Bundle.open(base_dir)
    # Files are compared with their digests before anything is averaged onto them.
    base.verify()
    source = Folder(updates_dir)
    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256, checks=checks or Checks())
    strategy = strategy or strategy_named("fedavg")
    data = None
    if evaluation is not None:
        data = ArrayDataset(*load_npz(evaluation, max_bytes=MAX_EVALUATION_BYTES, manifest=base.manifest))
    strategy = with_own_update(strategy, lambda: own_update(base, data, FitTask()))
    state = read_state(base_dir / STATE, base.manifest.parameters_sha256, strategy)
    result = aggregate(
        base, source, source.list(), strategy, expected, AggregationOptions(state=state, progress=progress)
    )
    if result.parameters is not None:
        # As a round would number it: MAJOR.ROUND.PATCH.
        minor = int(base.manifest.version.split(".")[1])
        version = version or next_version(base.manifest.version, minor + 1)
        try:
            new = write_bundle(base, result.parameters, output_dir, version=version)
            if result.state:
                write_state(output_dir / STATE, new, result.state, strategy.name)
        except OSError as error:
            raise ConfigurationError(
                f"{output_dir}: cannot be written ({error.strerror}); choose another place"
            ) from error
    return result
