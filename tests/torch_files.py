"""Writes files in the formats of `torch.save` and safetensors, without PyTorch."""

import json
import os
import struct
import zipfile
from typing import NamedTuple

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "bfloat16": "BFloat16Storage",
}


class Global(NamedTuple):
    """A class or function by name."""

    module: str
    name: str


class Call(NamedTuple):
    """An object that a pickle makes by calling a function."""

    function: Global
    arguments: tuple


class Reference(NamedTuple):
    """A persistent id."""

    values: tuple


class Raw(NamedTuple):
    """Opcodes that push one object."""

    opcodes: bytes


class Trap:
    """A class that makes a folder when it is created."""

    def __new__(cls, path, **_):
        os.mkdir(path)
        return super().__new__(cls)


def _encode_integer(value):
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _encode_text(text):
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _encode_dict(values):
    return b"}(" + b"".join(map(encode, sum(values.items(), ()))) + b"u"


_ENCODERS = {
    Raw: lambda x: x.opcodes,
    Global: lambda x: f"c{x.module}\n{x.name}\n".encode(),
    Call: lambda x: encode(x.function) + encode(x.arguments) + b"R",
    Reference: lambda x: encode(x.values) + b"Q",
    bool: lambda x: b"\x88" if x else b"\x89",
    int: _encode_integer,
    str: _encode_text,
    dict: _encode_dict,
    tuple: lambda x: b"(" + b"".join(map(encode, x)) + b"t",
    list: lambda x: b"](" + b"".join(map(encode, x)) + b"e",
    type(None): lambda x: b"N",
}


def encode(value):
    """Returns opcodes that push a value."""
    return _ENCODERS[type(value)](value)


def dump(value):
    """Returns a pickle."""
    return b"\x80\x02" + encode(value) + b"."


def make_tensor(
    shape, dtype="float32", key="0", *, size=None, offset=0, strides=None, details=()
):
    """Returns a tensor for `encode`.

    Args:
        shape: Its shape.
        dtype: Name of its type.
        key: Name of its storage.
        size: Elements in the storage; None for those of the tensor.
        offset: Position of the first element in the storage.
        strides: Elements between neighbours along each axis; None if contiguous.
        details: Arguments after the hooks.
    """
    count = int(np.prod(shape)) if size is None else size
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = Global("torch", STORAGES[dtype])
    reference = ("storage", storage, key, "cpu", count)
    function = Global("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(
        function,
        (Reference(reference), offset, shape, strides, False, hooks, *details),
    )


def write_zip(path, root, storages, **entries):
    """Writes the zip format.

    Args:
        path: Path of the file.
        root: An object for `encode`, or the bytes of a pickle.
        storages: Maps keys to bytes.
        entries: More entries, or replacements of them.
    """
    content = root if isinstance(root, bytes) else dump(root)
    files = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    files |= {f"data/{key}": x for key, x in storages.items()} | entries
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_legacy(path, root, storages, *, is_little=True, counts=None):
    """Writes the format before PyTorch 1.6.

    Args:
        path: Path of the file.
        root: An object for `encode`, or the bytes of a pickle.
        storages: Maps keys to bytes.
        is_little: Whether the machine was little-endian.
        counts: Elements of each storage; None if they are float32.
    """
    counts = counts or {key: len(x) // 4 for key, x in storages.items()}
    parts = [MAGIC, VERSION, {"protocol_version": VERSION, "little_endian": is_little}]
    content = b"".join(map(dump, parts))
    content += root if isinstance(root, bytes) else dump(root)
    content += dump(list(storages))
    for key, data in storages.items():
        content += struct.pack("<q", counts[key]) + data
    path.write_bytes(content)
    return path


def write_safetensors(path, tensors, metadata=None, header=None):
    """Writes a safetensors file.

    Args:
        path: Path of the file.
        tensors: Maps names to dtype, shape and bytes.
        metadata: Its metadata.
        header: Bytes of the header instead of the right ones.
    """
    described, content = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, (dtype, shape, data) in tensors.items():
        span = [len(content), len(content) + len(data)]
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        content += data
    header = json.dumps(described).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path
