"""Bundles of which devices keep some parameters for themselves, as test material."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.personal import local_names
from fedgrass.statistics import statistics_of


def partly_local(bundle: Bundle, folder: Path, *patterns: str) -> Bundle:
    """The same model, with what the patterns name local."""
    shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns(MANIFEST))
    names = local_names(patterns, bundle.manifest.parameters, statistics_of(bundle.manifest).keys())
    return Bundle.seal(folder, bundle.manifest.model_copy(update={"local": names}))
