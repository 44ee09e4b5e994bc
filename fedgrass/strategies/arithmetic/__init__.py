"""Arithmetic that strategies share: imported when a strategy is built, because settings are checked without NumPy."""
