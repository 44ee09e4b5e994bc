"""The codec int8: one byte per scalar."""

from __future__ import annotations

from fedgrass.update.quantized import Int8

codec = Int8()
