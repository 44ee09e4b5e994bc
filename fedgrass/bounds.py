"""Bounds on files of tensors, in a module that needs no NumPy."""

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
