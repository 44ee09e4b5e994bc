"""Bounds on files of tensors; apart from what reads them, for NumPy is not needed to know them."""

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
