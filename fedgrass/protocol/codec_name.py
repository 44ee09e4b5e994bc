"""Names of codecs: ``[topk:FRACTION+]VALUES[+zstd]``, as ``int8``, ``topk:0.05`` or ``topk:0.02+int8+zstd``.

The grammar is here, apart from the codecs themselves, because settings are checked where NumPy is not installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedgrass.parts import CODECS

_NAME = re.compile(
    # zstd and topk are steps of a codec's name, so neither may be taken for the name of the values' codec.
    r"^(?:topk:(?P<fraction>0\.[0-9]{1,6}))?(?:(?:^|\+)(?P<values>(?!zstd\b|topk\b)[a-z][a-z0-9_]{0,63}))?(?P<zstd>\+zstd)?"
)


@dataclass(frozen=True)
class CodecName:
    """A codec's name taken apart. ``fraction`` is the share of scalars that is sent; None sends all."""

    fraction: float | None
    values: str
    zstd: bool

    @classmethod
    def parse(cls, name: str) -> CodecName:
        """Take a name apart; raises `ValueError` with what was expected."""
        match = _NAME.fullmatch(name)
        if (
            match is None
            or not (match["values"] or match["fraction"])
            # topk:0.0 fits the pattern, and would send nothing.
            or (match["fraction"] and not float(match["fraction"]))
            or (match["values"] or "float32") not in CODECS
        ):
            raise ValueError(
                f"codec {name[:40]!r}: expected one of {CODECS.choices()}, with topk:FRACTION+ (0 < FRACTION < 1) "
                "before it or +zstd after it where wanted, as in topk:0.02+int8+zstd"
            )
        fraction = float(match["fraction"]) if match["fraction"] else None
        return cls(fraction, match["values"] or "float32", bool(match["zstd"]))
