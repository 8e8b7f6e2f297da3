"""The manifest of a conversion: the shards that need not be written again."""

import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.data.info import check_hash
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs, text_files

MANIFEST = "conversion.json"
_HASH_MODULUS = 1 << 256


@dataclasses.dataclass
class Content:
    """Additive counts and hash of some samples.

    Pixel counts are int64 `[num_classes]`, as in `DatasetInfo`; `hash_sum` adds the
    samples' SHA-256, independent of order and sharding.
    """

    images: int
    class_pixels: np.ndarray
    class_image_pixels: np.ndarray
    hash_sum: int

    @classmethod
    def empty(cls, num_classes: int) -> "Content":
        """Returns the content of zero samples."""
        zeros = np.zeros(num_classes, np.int64)
        return cls(0, zeros, zeros, 0)

    def __add__(self, other: "Content") -> "Content":
        return Content(
            self.images + other.images,
            self.class_pixels + other.class_pixels,
            self.class_image_pixels + other.class_image_pixels,
            (self.hash_sum + other.hash_sum) % _HASH_MODULUS,
        )

    def to_json(self) -> dict:
        """Returns the content as JSON values."""
        return {
            "images": self.images,
            "class_pixels": self.class_pixels.tolist(),
            "class_image_pixels": self.class_image_pixels.tolist(),
            "content_hash": f"{self.hash_sum:064x}",
        }

    @classmethod
    def from_json(cls, values: dict) -> "Content":
        """Inverse of `to_json`."""
        return cls(
            values["images"],
            np.array(values["class_pixels"], np.int64),
            np.array(values["class_image_pixels"], np.int64),
            int(values["content_hash"], 16),
        )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A finished shard in the manifest: `Content.to_json` and its fingerprint."""

    sources: str
    images: int
    class_pixels: list[int]
    class_image_pixels: list[int]
    content_hash: str

    def __post_init__(self):
        check_hash(self.content_hash, "content_hash")
        if min(self.images, *self.class_pixels, *self.class_image_pixels) < 0:
            raise UserError("a count is negative")


@dataclasses.dataclass(frozen=True)
class _ManifestFile:
    shards: dict[str, _Entry]


class Manifest:
    """The finished shards of a folder, in its `conversion.json`.

    A manifest that cannot be read is reported and starts empty. `found` is whether the
    folder had one.
    """

    def __init__(self, folder: str, num_classes: int):
        self._num_classes = num_classes
        self._path = os.path.join(folder, MANIFEST)
        self._lock = threading.Lock()
        self._shards: dict[str, dict] = {}
        self.found = tf.io.gfile.exists(self._path)
        if self.found:
            try:
                self._shards = self._read()
            except UserError as error:
                print(
                    f"warning: {error}; every shard will be written again",
                    file=sys.stderr,
                )

    def _read(self) -> dict[str, dict]:
        content = text_files.read_content(self._path)
        file = strict_json.from_json(_ManifestFile, content, self._path)
        return dataclasses.asdict(file)["shards"]

    def content(self, name: str, fingerprint: str) -> Content | None:
        """Returns the content of a finished shard; None if its sources changed."""
        shard = self._shards.get(name)
        if shard is None or shard["sources"] != fingerprint:
            return None
        sizes = {len(shard["class_pixels"]), len(shard["class_image_pixels"])}
        return Content.from_json(shard) if sizes == {self._num_classes} else None

    def add(self, name: str, fingerprint: str, content: Content) -> None:
        """Adds a finished shard and writes the manifest."""
        with self._lock:
            self._shards[name] = {"sources": fingerprint} | content.to_json()
            self._write()

    def keep(self, is_kept: Callable[[str], bool]) -> None:
        """Drops all other shards by name; removes an empty manifest."""
        with self._lock:
            self._shards = {k: v for k, v in self._shards.items() if is_kept(k)}
            if self._shards:
                self._write()
            else:
                remove([self._path])

    def _write(self) -> None:
        outputs.write_text(strict_json.dump({"shards": self._shards}), self._path)


def exists(*paths: str) -> bool:
    """Returns whether any of the paths exists."""
    return any(tf.io.gfile.exists(path) for path in paths)


def remove(paths: Iterable[str]) -> None:
    """Removes the files that exist."""
    for path in paths:
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
