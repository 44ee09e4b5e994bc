"""How behaviour of moto's is replaced where it differs from AWS's."""

from __future__ import annotations


def override(owner: object, name: str, replacement: object) -> None:
    """Give an attribute of moto's another value for as long as the process runs.

    Parameters
    ----------
    owner
        A class, a module or an object of moto's.
    name
        The attribute.
    replacement
        Its new value.

    Raises
    ------
    AttributeError
        If moto no longer has it: then what replaces it would be called by nobody, and the difference would come back unseen.
    """
    # Only to fail here and now if it is not there.
    getattr(owner, name)
    setattr(owner, name, replacement)
