"""The device's sign of life."""
