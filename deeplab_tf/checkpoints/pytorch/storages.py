"""Reads the containers of `torch.save`: zip archives, and pickles before PyTorch 1.6.

A zip archive has the object in `data.pkl` and one uncompressed entry per storage. The
older format is a sequence of pickles: a number, a version, the properties of the
machine, the object and the keys of its storages; then size and content of each.
"""

import collections
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from deeplab_tf.checkpoints.pytorch.objects import (
    SAVE,
    InvalidFileError,
    Storage,
    make_damage_error,
)
from deeplab_tf.checkpoints.pytorch.pickles import MAX_BYTES, interpret
from deeplab_tf.errors import one_line

ZIP = b"PK\x03\x04"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_BIG_ENDIAN = (
    f"it was saved on a big-endian machine; save it on another one with {SAVE}"
)
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(RuntimeError, ValueError, OverflowError),
)

Reader = Callable[[Storage], bytes]


def read_zip(file: BinaryIO) -> tuple[Any, Reader]:
    """Returns the object in a zip archive, as `interpret` does, and a reader.

    The reader returns the content of a storage, while the file is open.

    Raises:
        InvalidFileError: if the archive is damaged, unsafe or was not written by
            `torch.save`; the reader raises it, too.
    """
    try:
        archive = zipfile.ZipFile(file)
    except _ZIP_ERRORS as error:
        raise _make_zip_error(error) from error
    top = _find_root_folder(archive.namelist())
    entries = _list_entries(archive)
    if f"{top}data.pkl" in entries and entries[f"{top}data.pkl"].file_size > MAX_BYTES:
        raise InvalidFileError(
            f"its data.pkl has more than {MAX_BYTES:,} bytes; save only the weights "
            f"with {SAVE}"
        )

    def read_entry(name: str) -> bytes:
        if top + name not in entries:
            raise make_damage_error(f"its entry {name} is missing")
        try:
            return archive.read(entries[top + name])
        except _ZIP_ERRORS as error:
            raise _make_zip_error(error) from error

    if f"{top}byteorder" in entries and read_entry("byteorder") != b"little":
        raise InvalidFileError(_BIG_ENDIAN)
    root = interpret(io.BytesIO(read_entry("data.pkl")))
    return root, lambda storage: read_entry(f"data/{storage.key}")


def _make_zip_error(error: Exception) -> InvalidFileError:
    reason = one_line(error) or type(error).__name__
    return make_damage_error(f"it is truncated or damaged ({reason})")


def _list_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns entries by name; refuses unsafe, duplicate and compressed ones."""
    infos = archive.infolist()
    count = collections.Counter(info.filename for info in infos)
    for info in infos:
        name = one_line(info.filename[:100])
        if count[info.filename] > 1:
            raise make_damage_error(f"its entry {name} occurs twice")
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0]:
            raise InvalidFileError(f"its entry {name} has an unsafe name")
        if info.compress_type != zipfile.ZIP_STORED or (
            info.file_size != info.compress_size
        ):
            raise InvalidFileError(
                f"its entry {name} is compressed, which torch.save does not do; if it "
                "is an archive with weights, extract it and give a file from it"
            )
    return {info.filename: info for info in infos}


def _find_root_folder(names: list[str]) -> str:
    """Returns the top folder of the archive with a slash; refuses TorchScript."""
    tops = {n.partition("/")[0] + "/" for n in names if n.endswith("/data.pkl")}
    if len(tops) != 1:
        raise InvalidFileError("it is a zip archive, but not one that torch.save wrote")
    [top] = tops
    if f"{top}constants.pkl" in names:
        raise InvalidFileError(
            f"it is a TorchScript model; load it with torch.jit.load and use {SAVE}"
        )
    return top


def read_legacy(file: BinaryIO, size: int) -> tuple[Any, Reader]:
    """Reads a file of the format before PyTorch 1.6; returns the same as `read_zip`.

    `size` is the size of the file in bytes.
    """
    if interpret(file) != _MAGIC or interpret(file) != _VERSION:
        raise InvalidFileError(
            f"it is a pickle, but not one that torch.save wrote; use {SAVE}"
        )
    system = interpret(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InvalidFileError(_BIG_ENDIAN)
    storages: dict[str, Storage] = {}
    root = interpret(file, storages)
    locations = _locate_storages(file, size, interpret(file), storages)

    def read(storage: Storage) -> bytes:
        if storage.key not in locations:
            raise make_damage_error("a storage is missing")
        start, length = locations[storage.key]
        file.seek(start)
        return file.read(length)

    return root, read


def _locate_storages(
    file: BinaryIO, size: int, keys: Any, storages: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Returns start and length of each storage in the file."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise make_damage_error("its list of storages is invalid")
    locations: dict[str, tuple[int, int]] = {}
    position = file.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if key not in storages or key in locations:
            raise make_damage_error("its list of storages is invalid")
        length = count * storages[key].dtype.itemsize
        position += 8
        if count < 0 or position + length > size:
            raise make_damage_error("it is truncated or damaged")
        locations[key] = (position, length)
        position += length
    return locations
