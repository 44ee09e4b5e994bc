"""Add up what devices measured, and make it the fleet's profile: each file is read twice, and none is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.profile.features import feature_names, label_names
from fedgrass.profile.files import Layout
from fedgrass.profile.misfits import Sample, leaves_out
from fedgrass.profile.sums import FeatureSums
from fedgrass.protocol.profile import (
    MOST_MISFITS,
    QUANTILES,
    Feature,
    Label,
    Misfit,
    Profile,
    Quantile,
)

Read = Callable[[], Iterator[tuple[str, FeatureSums]]]
"""Yields each device's name and sums; called twice, it gives the same."""


@dataclass
class Combined:
    """The fleet's sums, and what did not fit."""

    sums: FeatureSums
    devices: int = 0
    left_out: list[str] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)
    more: int = 0


def combine(read: Read, layout: Layout, names: tuple[str, ...], *, most: int, leave_out: bool = True) -> Combined:
    """Add devices' sums up.

    Parameters
    ----------
    read
        Yields them, in the same order each time: the last bits of a sum of floats depend on it.
    layout
        What they hold.
    names
        The features'.
    most
        Examples beyond which a device's count only as so many.
    leave_out
        Whether devices that do not fit are not added.
    """
    # First pass: what is usual. Nothing of a device is kept but a bounded sample, as there may be 100,000 of them.
    sample = Sample(layout.features)
    for thing, sums in read():
        sample.add(thing, sums)
    usual = sample.usual()
    # Second pass: the files are read again rather than held in memory.
    total = Combined(FeatureSums(layout.features, layout.labels, layout.bounds))
    for thing, sums in read():
        odd = usual.misfits(thing, sums, names) if usual is not None else []
        # A report of every misfit of a large fleet would not fit into a profile: the rest is counted.
        room = MOST_MISFITS - len(total.misfits)
        total.misfits += odd[:room]
        total.more += max(0, len(odd) - room)
        if leave_out and leaves_out(odd):
            total.left_out.append(thing)
            continue
        total.devices += 1
        # A device counts as at most so many examples, whatever it claims.
        total.sums.merge(sums, min(1.0, most / sums.examples))
    return total


def profile_of(combined: Combined, manifest: Manifest, *, fleet: str, number: int, made_at: datetime) -> Profile:
    """Make the profile.

    Parameters
    ----------
    combined
        The fleet's sums.
    manifest
        Of the model whose inputs they are of.
    fleet, number
        The fleet's name, and the round's number.
    made_at
        When, with its time zone.
    """
    sums = combined.sums
    labels = zip(label_names(manifest), sums.labels.tolist(), strict=True)
    return Profile(
        fleet=fleet,
        round=number,
        made_at=made_at,
        model=manifest.version,
        graph_sha256=manifest.graph_sha256,
        devices=combined.devices,
        examples=sums.examples,
        features=tuple(_feature(sums, at, name) for at, name in enumerate(feature_names(manifest))),
        labels=tuple(Label(name=name, count=count) for name, count in labels),
        misfits=tuple(combined.misfits),
        misfits_more=combined.more,
        left_out=len(combined.left_out),
    )


def _feature(sums: FeatureSums, at: int, name: str) -> Feature:
    found: dict[str, Any] = {"name": name, "count": float(sums.count[at]), "missing": float(sums.missing[at])}
    if sums.count[at] > 0:
        found |= {
            "mean": float(sums.mean[at]),
            "variance": float(sums.variance[at]),
            "low": float(sums.low[at]),
            "high": float(sums.high[at]),
        }
    if sums.bounds is not None:
        found["bounds"] = (float(sums.bounds.low[at]), float(sums.bounds.high[at]))
        # Counts may be fractions where devices are scaled down; six digits behind the point are plenty.
        found["histogram"] = tuple(np.round(sums.histogram[at], 6).tolist())
        each = ((share, sums.quantile(at, share)) for share in QUANTILES)
        found["quantiles"] = tuple(Quantile(share=s, value=q[0], error=q[1]) for s, q in each if q is not None)
    return Feature(**found)
