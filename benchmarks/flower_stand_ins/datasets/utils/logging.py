"""Part of the stand-in."""


def disable_progress_bar() -> None:
    """Do nothing."""
