"""The address of a mirror of the model zoo."""

import os

_VARIABLE = "DEEPLAB_TF_ZOO"


def find_mirror() -> str | None:
    """Returns the address of the zoo's mirror in DEEPLAB_TF_ZOO, or None."""
    address = os.environ.get(_VARIABLE)
    return os.path.expanduser(address).rstrip("/") if address else None
