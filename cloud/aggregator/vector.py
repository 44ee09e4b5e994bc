"""A model's parameters as one flat float32 vector: what updates are added in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedgrass.bundle import Parameters, TensorDescription
from fedgrass.errors import BundleError
from fedgrass.update.codecs import Floats


class Layout:
    """Where each parameter lies in the vector: one after the other, in the manifest's order."""

    def __init__(self, parameters: Sequence[TensorDescription]) -> None:
        for parameter in parameters:
            if np.dtype(parameter.dtype).kind != "f":
                raise BundleError(
                    f"parameter {parameter.name!r} is {parameter.dtype}: only floats can be averaged. "
                    "List it under 'frozen' in the manifest"
                )
        self.parameters = tuple(parameters)
        self.starts: dict[str, int] = {}
        self.size = 0
        for parameter in parameters:
            self.starts[parameter.name] = self.size
            self.size += parameter.size

    def flatten(self, parameters: Parameters) -> Floats:
        """Return a new float32 vector of the parameters."""
        vector = np.empty(self.size, np.float32)
        for name, start in self.starts.items():
            values = parameters[name]
            vector[start : start + values.size] = values.ravel()
        return vector

    def unflatten(self, vector: Floats) -> Parameters:
        """Return the parameters in their own shapes and dtypes; float32 ones are views of the vector."""
        return {
            p.name: vector[self.starts[p.name] : self.starts[p.name] + p.size]
            .astype(p.dtype, copy=False)
            .reshape(p.shape)
            for p in self.parameters
        }
