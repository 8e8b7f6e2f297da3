"""The objects that files of `torch.save` may contain, by the names in their pickles.

Tensors and containers are rebuilt by functions of this module. Other objects that
checkpoints of training runs often contain become placeholders, and the rest is an
error: nothing is imported, and no code of a file or of another package runs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_tf.errors import escape

SAVE = 'torch.save(model.state_dict(), "weights.pth")'
_MAX_DIMENSIONS = 32
_MAX_INTEGER = 2**60
_SHOWN = 100  # characters of a name in messages
# Names of PyTorch's types, the types of NumPy and, if any, PyTorch's storages.
_TYPES = (
    ("bool", "?", "Bool"),
    ("uint8", "u1", "Byte"),
    ("uint16", "<u2", None),
    ("uint32", "<u4", None),
    ("uint64", "<u8", None),
    ("int8", "i1", "Char"),
    ("int16", "<i2", "Short"),
    ("int32", "<i4", "Int"),
    ("int64", "<i8", "Long"),
    ("bfloat16", tf.bfloat16.as_numpy_dtype, "BFloat16"),
    ("float16", "<f2", "Half"),
    ("float32", "<f4", "Float"),
    ("float64", "<f8", "Double"),
    ("complex64", "<c8", "ComplexFloat"),
    ("complex128", "<c16", "ComplexDouble"),
)
_DTYPES = {f"torch.{name}": np.dtype(dtype) for name, dtype, _ in _TYPES}
# Their tensors have a type of their own.
_UNTYPED = dict.fromkeys(
    ("torch.storage.UntypedStorage", "torch.UntypedStorage"), np.dtype("u1")
)
_STORAGES = _UNTYPED | {
    f"{module}.{storage}Storage": np.dtype(dtype)
    for _, dtype, storage in _TYPES
    for module in ("torch", "torch.cuda")
    if storage
}
# Objects of these become placeholders.
_PLACEHOLDERS = {
    "torch": (
        *("Tensor", "device", "strided", "nn.parameter.Parameter"),
        *("nn.parameter.Buffer", "serialization._get_layout"),
    ),
    "numpy": (
        *("dtype", "ndarray", "core.multiarray._reconstruct"),
        *("core.multiarray.scalar", "_core.multiarray._reconstruct"),
        *("_core.multiarray.scalar", "_core.numeric._frombuffer"),
    ),
    "builtins": (
        *("set", "frozenset", "slice", "range", "complex", "bytearray", "object"),
        *("int", "float", "bool", "str", "list", "dict", "tuple"),
        "getattr",  # for methods of HistoryBuffer
    ),
    "collections": ("deque",),
    "pathlib": ("Path", "PurePosixPath", "PosixPath", "WindowsPath"),
    # Encodes the bytes of NumPy arrays.
    "_codecs": ("encode",),
    # Creates objects in old pickles.
    "copyreg": ("_reconstructor",),
    "argparse": ("Namespace",),
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
}
# Modules of Python 2.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class InvalidFileError(Exception):
    """The reason why a file cannot be read, without its path."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A one-dimensional array in the file that tensors refer to."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not read yet; offset and strides count elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Placeholder:
    """An object that is not needed, without its content."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Global:
    """A class or function that a pickle names."""

    name: str


def make_damage_error(reason: str) -> InvalidFileError:
    """Returns an error that advises to download the file again."""
    return InvalidFileError(f"{reason}; download or copy the file again")


def shorten(text: object) -> str:
    """Returns the start of a text from a file, for messages."""
    return escape(str(text)[:_SHOWN])


def find_global(module: str, name: str) -> _Global:
    """Returns a class or function that a pickle names; refuses those not listed."""
    full_name = f"{_RENAMED.get(module, module)}.{name}"
    if full_name not in _ADMITTED:
        raise InvalidFileError(
            f"it contains {shorten(full_name)}, but only tensors and plain containers "
            "can be read without running code from the file; if you trust the file, "
            f"load the model with PyTorch and save it again with {SAVE}"
        )
    return _Global(full_name)


def _is_valid_size(value: object) -> bool:
    """Returns whether a value is a non-negative integer below `_MAX_INTEGER`."""
    return type(value) is int and 0 <= value < _MAX_INTEGER


def parse_storage(reference: Any) -> Storage:
    """Returns the storage that a persistent id describes.

    Its items are "storage", class, key, device, size in elements and, before PyTorch
    1.6, the position in another storage, else None.
    """
    kind, cls, key, _, size, *position = reference
    if kind != "storage":  # the source code of a module
        raise InvalidFileError(
            f"it contains a model with its code; load it with PyTorch and use {SAVE}"
        )
    if not isinstance(cls, _Global) or position not in ([], [None]):
        raise make_damage_error("it contains an unknown kind of storage")
    if not isinstance(key, str) or not _is_valid_size(size):
        raise make_damage_error("a storage has an invalid name or size")
    return Storage(key, _STORAGES[cls.name], size)


def _rebuild_tensor(storage, offset, shape, strides, *details) -> Tensor:
    """Arguments are those of `torch._utils._rebuild_tensor` and `_v2`."""
    return _make_tensor(storage, storage.dtype, offset, shape, strides, details[2:])


def _rebuild_tensor_v3(storage, offset, shape, strides, *details) -> Tensor:
    dtype = _DTYPES[details[2].name]
    return _make_tensor(storage, dtype, offset, shape, strides, details[3:])


def _make_tensor(storage, dtype, offset, shape, strides, metadata) -> Tensor:
    """Returns a tensor; raises InvalidFileError if it exceeds its storage."""
    if any(metadata):
        raise InvalidFileError(
            "it contains a conjugated or negated tensor; save its resolve_conj() or "
            "resolve_neg()"
        )
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise make_damage_error(
            f"a tensor has {len(shape)} sizes and {len(strides)} strides"
        )
    if not all(map(_is_valid_size, (offset, *shape, *strides))):
        raise make_damage_error("a tensor has an invalid offset, size or stride")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = storage.nbytes // dtype.itemsize
    if 0 not in shape and last >= size:
        raise make_damage_error(
            f"a tensor of shape {shape} needs element {last} of a storage with "
            f"{size} elements"
        )
    return Tensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _rebuild_subclass(function, _, arguments, *state):
    """Rebuilds a tensor of a subclass as a plain tensor, without its state."""
    return rebuild_object(function, arguments)


def _make_dict(items=()) -> dict:
    result: dict = {}
    add_items(result, items.items() if isinstance(items, dict) else items)
    return result


def add_items(target: Any, items: Any) -> None:
    """Adds pairs to a dict; does nothing for a placeholder."""
    if isinstance(target, Placeholder):
        return
    for key, value in items:
        # Other keys may have equal hashes, which take long, or be nested too deeply.
        is_plain = isinstance(key, str) or _is_valid_size(key)
        target[key if is_plain else Placeholder("key")] = value


_BUILDERS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.Size": lambda sizes=(): sizes,
    "collections.OrderedDict": _make_dict,
    "collections.Counter": _make_dict,
    "collections.defaultdict": lambda *_: {},
}
_ADMITTED = {
    *_BUILDERS,
    *_STORAGES,
    *_DTYPES,
    *(f"{module}.{name}" for module, names in _PLACEHOLDERS.items() for name in names),
}


def rebuild_object(function: Any, arguments: Any) -> Any:
    """Rebuilds an object from its class or function, and arguments."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise make_damage_error("its pickle calls something that is not a function")
    build = _BUILDERS.get(function.name)
    return build(*arguments) if build else Placeholder(function.name)
