"""The codec float32: four bytes per scalar, exact."""

from __future__ import annotations

from fedgrass.update.codecs import Float32

codec = Float32()
