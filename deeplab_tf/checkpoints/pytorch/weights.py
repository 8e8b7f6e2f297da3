"""Reads the weights of PyTorch models, without PyTorch and without running code.

Supports `torch.save` in both of its formats, safetensors, and folders of Hugging Face.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open

from deeplab_tf import strict_json
from deeplab_tf.checkpoints.pytorch.objects import (
    SAVE,
    InvalidFileError,
    Tensor,
    make_damage_error,
    shorten,
)
from deeplab_tf.checkpoints.pytorch.storages import ZIP, Reader, read_legacy, read_zip
from deeplab_tf.errors import UserError, escape, one_line
from deeplab_tf.files import file_kinds, text_files

SAFETENSORS = ".safetensors"
# Despite its name, .pth.tar is not an archive.
SUFFIXES = (".pth", ".pt", ".pth.tar", ".bin", SAFETENSORS)
CONFIG = "config.json"
# Files with weights in a folder of Hugging Face, in the order of preference.
WEIGHTS = (f"model{SAFETENSORS}", "pytorch_model.bin")
_INDEX = ".index.json"
# Entries of training checkpoints with a state dict; moving averages come first. The
# ema_state_dict of OpenMMLab does not: there, state_dict has the averages.
_ENTRIES = (
    *("model_ema", "state_dict_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "module", "net", "ema_state_dict"),
)
_MAX_DEPTH = 3
# Prefixes of DataParallel, Lightning and torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
# Tensors of training that are not part of the model.
_TRAINING = ("n_averaged", "criterion.", "loss.", "loss_fn.")
_HALF = (np.dtype(np.float16), np.dtype(tf.bfloat16.as_numpy_dtype))
# Maximum bytes of the arrays for each byte of the file: half precision doubles, and
# tensors may share a storage.
_MAX_EXPANSION, _SMALL = 8, 2**20
_HEAD = 512
_LFS, _HTML = b"version https://git-lfs", (b"<!doctype html", b"<html")
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """The weights of a PyTorch model.

    Attributes:
        path: Path of the file or folder.
        arrays: Maps names of the state dict to values; half precision is converted to
            float32. Prefixes of wrappers, such as `module.`, are removed.
        description: Content of `config.json` in a folder of Hugging Face, else empty.
    """

    path: str
    arrays: dict[str, np.ndarray]
    description: dict[str, Any]


def is_torch_file(path: str) -> bool:
    """Returns whether a path names PyTorch weights: a file, or a folder with them.

    Only the name of a file matters.
    """
    if tf.io.gfile.isdir(path):
        return _find_weights_file(path) is not None
    return path.endswith(SUFFIXES)


def read_torch_file(path: str | os.PathLike) -> TorchFile:
    """Reads the weights in a file of PyTorch, or in a folder of Hugging Face.

    Args:
        path: A `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file with a state
            dict, or with a training checkpoint that contains one; or a folder with
            `config.json` and `model.safetensors` or `pytorch_model.bin`, perhaps in
            several shards.

    Raises:
        UserError: if the file is missing, damaged, contains no state dict, or contains
            more than tensors and plain containers. Code in a file is never executed.
    """
    path = os.fspath(path)
    if tf.io.gfile.isdir(path):
        return _read_folder(path)
    return TorchFile(path, _select_weights(_read_file(path), path), {})


def _find_weights_file(folder: str) -> str | None:
    """Returns the name of the weights, or of the index of their shards."""
    names = [name + suffix for name in WEIGHTS for suffix in ("", _INDEX)]
    found = (n for n in names if tf.io.gfile.exists(os.path.join(folder, n)))
    return next(found, None)


def _read_folder(folder: str) -> TorchFile:
    """Reads the weights and the `config.json` of a Hugging Face folder."""
    name = _find_weights_file(folder)
    if name is None:
        raise UserError(
            f"{escape(folder)} contains neither {' nor '.join(WEIGHTS)}; give the "
            "path of a file with weights"
        )
    described, description = os.path.join(folder, CONFIG), {}
    if tf.io.gfile.exists(described):
        description = strict_json.load(text_files.read_content(described), described)
    path = os.path.join(folder, name)
    tensors = _read_shards(path) if name.endswith(_INDEX) else _read_file(path)
    return TorchFile(folder, _select_weights(tensors, path), description)


def _read_shards(index: str) -> dict[str, np.ndarray]:
    """Reads all shards that an index names."""
    content = strict_json.load(text_files.read_content(index), index)
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not all(
        map(_is_valid_shard_name, shards.values())
    ):
        raise UserError(
            f"{index}: weight_map must map the name of each tensor to a "
            f"{' or '.join(SUFFIXES)} file of the same folder"
        )
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(shards.values())):
        path = os.path.join(os.path.dirname(index), name)
        for key, array in _read_file(path).items():
            if shards.get(key) == name:
                arrays[key] = array
    missing = sorted(set(shards) - set(arrays))
    if missing:
        raise UserError(
            f"{index}: {escape(shards[missing[0]])} contains no {shorten(missing[0])}; "
            "download the folder again"
        )
    return arrays


def _is_valid_shard_name(name: Any) -> bool:
    """Returns whether a name is that of a weights file in the same folder."""
    return isinstance(name, str) and name.endswith(SUFFIXES) and not {*"/\\"} & {*name}


def _read_file(path: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, with half precision converted to float32."""
    with file_kinds.make_local(path) as local:
        try:
            if path.endswith(SAFETENSORS):
                return _read_safetensors(local)
            with file_kinds.open_file(local) as raw:
                size = file_kinds.get_file_size(raw)
                with contextlib.closing(io.BufferedReader(raw)) as file:  # type: ignore
                    return _read_torch(file, size, path)
        except InvalidFileError as error:
            raise UserError(f"{escape(path)} cannot be read: {error}") from error


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors file, half precision as float32."""
    with file_kinds.open_file(path) as file:
        _refuse_other_formats(file.read(_HEAD))
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: _widen_half(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise make_damage_error(f"it is damaged ({one_line(error)[:200]})") from error
    except (TypeError, AttributeError) as error:  # such as float8
        raise InvalidFileError(
            f"it has a type that NumPy lacks ({one_line(error)[:200]}); convert its "
            "tensors to float32"
        ) from error


def _refuse_other_formats(head: bytes) -> None:
    """Raises InvalidFileError for files that are often mistaken for weights."""
    if not head:
        raise InvalidFileError("it is empty; download it again")
    if head.startswith(_LFS):
        raise InvalidFileError("it is a Git LFS pointer; run git lfs pull")
    if head.lstrip().lower().startswith(_HTML):
        raise InvalidFileError(
            "it is an HTML page; download the file itself, for example with the link "
            "of its download button"
        )


def _read_torch(file: BinaryIO, size: int, path: str) -> dict[str, np.ndarray]:
    """Reads a file of `torch.save`; refuses tensors that would fill the memory."""
    head = file.read(_HEAD)
    _refuse_other_formats(head)
    file.seek(0)
    root, read = read_zip(file) if head.startswith(ZIP) else read_legacy(file, size)
    tensors = _find_state_dict(root, path)
    limit = _MAX_EXPANSION * size + _SMALL
    needed = sum(_count_bytes(tensor) for tensor in set(tensors.values()))
    if needed > limit:
        raise InvalidFileError(
            f"its tensors would need {needed:,} bytes of memory, more than "
            f"{_MAX_EXPANSION} times the size of the file"
        )
    return _read_arrays(tensors, read)


def _count_bytes(tensor: Tensor) -> int:
    """Returns the size of a tensor in bytes, after conversion of half precision."""
    itemsize = 4 if tensor.dtype in _HALF else tensor.dtype.itemsize
    return itemsize * int(np.prod([int(n) for n in tensor.shape], dtype=object))


def _find_state_dict(root: Any, path: str) -> dict[str, Tensor]:
    """Returns the state dict in an object of `torch.save`; prints which, if several."""
    if not isinstance(root, dict):
        kind = type(root).__name__.lower()
        raise InvalidFileError(f"it contains a {kind}, not a state dict; use {SAVE}")
    found = _find_known_state_dicts(root) or _find_unnamed_state_dict(root)
    if not found:
        entries = ", ".join(shorten(key) for key in list(root)[:_SHOWN])
        raise InvalidFileError(
            f"it contains no state dict, only the entries {entries or '(none)'}; use "
            f"{SAVE}"
        )
    [name, *unused] = found
    if unused:
        print(f"note: {path}: using the weights in {name}, not {', '.join(unused)}")
    return {str(n): x for n, x in found[name].items() if isinstance(x, Tensor)}


def _find_known_state_dicts(entries: dict, depth: int = 0) -> dict[str, dict]:
    """Returns the state dicts in the known entries of a training checkpoint."""
    found = {}
    for name in _ENTRIES:
        entry = entries.get(name)
        if isinstance(entry, dict) and depth < _MAX_DEPTH:
            inner = _find_known_state_dicts(entry, depth + 1)
            for key, state in inner.items() or [("", entry)] * _has_tensors(entry):
                found[f"{name}.{key}".strip(".")] = state
    return found


def _find_unnamed_state_dict(entries: dict) -> dict[str, dict]:
    """Returns the only entry that is a state dict, or the object itself if it is.

    The result maps its name to it; {} if there is none.
    """
    states = {n: x for n, x in entries.items() if _has_tensors(x)}
    if len(states) > 1:
        names = ", ".join(shorten(name) for name in list(states)[:_SHOWN])
        raise InvalidFileError(
            f"it contains several state dicts ({names}); save one of them with "
            "torch.save"
        )
    return states or ({"": entries} if _has_tensors(entries) else {})


def _has_tensors(entry: Any) -> bool:
    return isinstance(entry, dict) and any(
        isinstance(name, str) and isinstance(value, Tensor)
        for name, value in entry.items()
    )


def _read_arrays(tensors: Mapping[str, Tensor], read: Reader) -> dict[str, np.ndarray]:
    """Reads each storage once and returns tensors as arrays by name."""
    contents: dict[str, bytes] = {}
    arrays: dict[Tensor, np.ndarray] = {}
    for tensor in tensors.values():
        storage = tensor.storage
        if storage.key not in contents:
            contents[storage.key] = read(storage)
        content = contents[storage.key]
        if len(content) != storage.nbytes:
            raise make_damage_error(
                f"a storage has {len(content):,} bytes instead of {storage.nbytes:,}"
            )
        if tensor not in arrays:
            arrays[tensor] = _widen_half(_make_array(tensor, content))
    return {name: arrays[tensor] for name, tensor in tensors.items()}


def _make_array(tensor: Tensor, content: bytes) -> np.ndarray:
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, tensor.dtype)
    size = tensor.dtype.itemsize
    strides = tuple(size * stride for stride in tensor.strides)
    return np.ndarray(
        tensor.shape, tensor.dtype, content, size * tensor.offset, strides
    )


def _widen_half(array: np.ndarray) -> np.ndarray:
    """Converts half precision to float32; returns other arrays unchanged."""
    return array.astype(np.float32) if array.dtype in _HALF else array


def _select_weights(
    arrays: Mapping[str, np.ndarray], path: str
) -> dict[str, np.ndarray]:
    """Drops tensors of training, and removes the prefixes of wrappers."""
    kept = {n: a for n, a in arrays.items() if not n.startswith(_TRAINING)}
    if not kept:
        raise UserError(f"{escape(path)} contains no tensors; use {SAVE}")
    while prefix := _find_wrapper_prefix(kept):
        kept = {name.removeprefix(prefix): array for name, array in kept.items()}
    return kept


def _find_wrapper_prefix(names: Mapping[str, Any]) -> str | None:
    return next((p for p in _PREFIXES if all(n.startswith(p) for n in names)), None)
