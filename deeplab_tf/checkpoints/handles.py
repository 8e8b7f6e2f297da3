"""Handles of models on Hugging Face (`hf://`) and Kaggle (`kaggle://`)."""

import re
from typing import Any, NamedTuple

from deeplab_tf.errors import UserError, import_extra, require_extra

HUGGING_FACE, _KAGGLE = "hf://", "kaggle://"
_EXTRA, _NEEDED_BY = "hub", "{} needs"
_PART = r"[\w.-]+"


class _Hub(NamedTuple):
    """The form of a hub's handles, and the package that downloads its models."""

    pattern: str
    form: str
    client: str


_HUBS = {
    HUGGING_FACE: _Hub(
        f"{_PART}/{_PART}(@[^@]+)?", "hf://user/repo", "huggingface_hub"
    ),
    _KAGGLE: _Hub(
        f"{_PART}(/{_PART}){{3,4}}", "kaggle://user/model/keras/variation", "kagglehub"
    ),
}


def is_handle(source: str) -> bool:
    """Returns whether a source is a model on a hub rather than a path."""
    return source.startswith(tuple(_HUBS))


def require_client(source: str) -> None:
    """Raises UserError if a source is a handle that cannot be downloaded.

    Its form is invalid, or the client of its hub is not installed.
    """
    if is_handle(source):
        _, client = _parse(source)
        require_extra([client], _EXTRA, _NEEDED_BY.format(source))


def import_client(handle: str) -> tuple[str, Any]:
    """Returns a handle without its scheme, and the client of its hub.

    Raises:
        UserError: if the handle is invalid, or the client is not installed.
    """
    name, client = _parse(handle)
    return name, import_extra(client, _EXTRA, _NEEDED_BY.format(handle))


def _parse(handle: str) -> tuple[str, str]:
    """Returns a handle without its scheme, and the name of its client."""
    scheme = next(x for x in _HUBS if handle.startswith(x))
    name, hub = handle.removeprefix(scheme), _HUBS[scheme]
    if not re.fullmatch(hub.pattern, name):
        raise UserError(f"a handle must be {hub.form}; received {handle}")
    return name, hub.client
