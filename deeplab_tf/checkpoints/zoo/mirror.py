"""The address of a mirror of the model zoo."""

import os

_VARIABLE = "DEEPLAB_TF_ZOO"


def find_mirror() -> str | None:
    """Returns the address in DEEPLAB_TF_ZOO, if any, which has all files of the zoo."""
    address = os.environ.get(_VARIABLE)
    return os.path.expanduser(address).rstrip("/") if address else None
