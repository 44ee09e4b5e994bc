"""``score.json`` beside the application's model: what the score of an anomaly detector is, and beyond what it is an alarm.

An application reads it where it loads the model, ``active/score.json``. The threshold is the quantile that the bundle names, of
the scores of this device's kept-back examples by the model that the application loads; or the owner's (``anomalyThreshold``);
or the fleet's, which comes with the version (`fedgrass.protocol.fleet_score`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.errors import DataError, first_problem
from fedgrass.protocol.names import SCORE
from fedgrass.tensors import Array

MAX_BYTES: Final = 1 << 16
"""Of the file that comes with a version."""


class Score(BaseModel):
    """How an application scores, and when it raises an alarm. ``fleet`` is the fleet's threshold, whichever is used."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    score: Literal["mean_squared_error"] = "mean_squared_error"
    quantile: float = Field(gt=0, lt=1)
    threshold: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    origin: Literal["device", "owner", "fleet", "none"] = "none"
    fleet: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @classmethod
    def of(
        cls,
        quantile: float | None,
        measured: float | None,
        owners: float | Literal["fleet"] | None,
        fleet: float | None = None,
    ) -> Score | None:
        """Return a model's.

        Parameters
        ----------
        quantile
            As the bundle names it; None: it is no anomaly detector.
        measured
            The quantile of this device's scores; None where it keeps no examples back.
        owners
            The owner's threshold, which goes before; ``fleet``: the fleet's does.
        fleet
            The fleet's of this version; None where the version was not evaluated. It is taken where the device has none, too.

        Examples
        --------
        >>> found = Score.of(0.99, 0.25, None)
        >>> found.threshold, found.origin
        (0.25, 'device')
        """
        if quantile is None:
            return None
        if isinstance(owners, int | float):
            return cls(quantile=quantile, threshold=owners, origin="owner", fleet=fleet)
        if fleet is not None and (owners == "fleet" or measured is None):
            return cls(quantile=quantile, threshold=fleet, origin="fleet", fleet=fleet)
        return cls(quantile=quantile, threshold=measured, origin="none" if measured is None else "device", fleet=fleet)

    @classmethod
    def read(cls, folder: Path) -> Score | None:
        """Read what lies beside a model; None if the model is no anomaly detector, or was never admitted here.

        Raises
        ------
        DataError
            If the file is damaged.
        """
        path = folder / SCORE
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{path}: larger than {MAX_BYTES} bytes; install the model again")
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DataError(f"{path}: {first_problem(error)}; install the model again") from error

    @property
    def of_fleet(self) -> float | None:
        """The fleet's threshold: of what comes with a version, and of what an earlier admission made of it."""
        return self.threshold if self.origin == "fleet" else self.fleet

    def of_examples(self, x: Array, output: Array) -> Array:
        """Return the scores [n] of inputs [n, …] and what the model gives for them [n, …]."""
        return np.asarray(np.square(np.asarray(output, np.float64) - x).reshape(len(x), -1).mean(axis=1))

    def alarms(self, scores: Array) -> Array:
        """Say of which scores [n] there is to be an alarm; of none without a threshold."""
        return scores > (np.inf if self.threshold is None else self.threshold)

    def to_json(self) -> bytes:
        """Return the file's content."""
        return (self.model_dump_json(indent=2) + "\n").encode()
