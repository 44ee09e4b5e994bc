"""The codec float16: two bytes per scalar."""

from __future__ import annotations

from fedgrass.update.codecs import Float16

codec = Float16()
