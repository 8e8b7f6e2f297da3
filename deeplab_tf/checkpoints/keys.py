"""Variable keys in the files of `tf.train.Checkpoint`.

We write them from a dictionary of groups (weights, moving averages, optimiser and so
on), each keyed by name. TensorFlow escapes `.` as `..` and `/` as `.S`.
"""

import re
from collections.abc import Iterable

MODEL_KEY, AVERAGE_KEY = "model", "average"
# Key of the object graph, which official checkpoints do not have.
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def to_key(*names: str) -> str:
    """Returns the key of a variable, from its name or its group and name."""
    escaped = [name.replace(".", "..").replace("/", ".S") for name in names]
    return "/".join(escaped) + _SUFFIX


def from_key(key: str) -> tuple[str, ...]:
    """Returns the arguments of `to_key`, or () for keys that are not of variables."""
    if not key.endswith(_SUFFIX):
        return ()
    escaped = key.removesuffix(_SUFFIX).split("/")
    return tuple(
        re.sub(r"\.(.)", lambda match: match[1].replace("S", "/"), name)
        for name in escaped
    )


def weight_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns `{official name: key}` of the weights, preferring moving averages."""
    parts = {from_key(key): key for key in keys}
    return {
        names[1]: key
        for group in (MODEL_KEY, AVERAGE_KEY)
        for names, key in parts.items()
        if len(names) == 2 and names[0] == group
    }
