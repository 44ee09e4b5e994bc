"""The codec int4: half a byte per scalar."""

from __future__ import annotations

from fedgrass.update.quantized import Int4

codec = Int4()
