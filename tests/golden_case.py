"""Golden cases: inputs, weights and outputs of the official graph."""

import contextlib
import dataclasses
import json
import pathlib
import zlib

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent / "golden"


def value(name: str, shape) -> np.ndarray:
    """Returns the golden value of a variable, derived from its official name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    scales = {
        "gamma": lambda: 1.0 + 0.1 * z,
        "moving_variance": lambda: 1.0 + 0.2 * np.abs(z),
        "depthwise_weights": lambda: z * np.sqrt(2.0 / (shape[0] * shape[1])),
        "weights": lambda: z * np.sqrt(1.4 / np.prod(shape[:3])),
    }
    leaf = name.rsplit("/", 1)[-1]
    return scales.get(leaf, lambda: 0.1 * z)().astype(np.float32)


@contextlib.contextmanager
def zero_kernels():
    """Initial kernels are zero: golden values replace them, and drawing takes long."""
    import keras

    def zeros(self, shape, dtype=None):
        return keras.ops.zeros(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        for kind in (
            keras.initializers.TruncatedNormal,
            keras.initializers.GlorotUniform,
        ):
            patch.setattr(kind, "__call__", zeros)
        yield


def expand_names(variables: dict) -> dict:
    """Expands each `BatchNorm` entry to its four variables; maps names to shapes."""
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    return {
        full: shape
        for name, shape in variables.items()
        for full in (
            [f"{name}/{leaf}" for leaf in leaves]
            if name.endswith("BatchNorm")
            else [name]
        )
    }


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the variable shapes of an official checkpoint by name."""
    lines = (FOLDER / "manifests" / f"{name}.tsv").read_text().splitlines()
    rows = dict(line.split("\t") for line in lines)
    return {
        n: tuple(map(int, shape.split(","))) for n, shape in expand_names(rows).items()
    }


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A golden case: the content of its JSON file and its arrays."""

    content: dict
    arrays: dict

    @classmethod
    def load(cls, name: str) -> "GoldenCase":
        """Loads a case by its file name."""
        content = json.loads((FOLDER / f"{name}.json").read_text())
        content["variables"] = expand_names(content["variables"])
        cell = content["flags"].get("dense_prediction_cell_json")
        if cell:
            content["flags"]["dense_prediction_cell_json"] = str(
                FOLDER / "cells" / cell
            )
        path = FOLDER / f"{name}.npz"
        return cls(content, dict(np.load(path)) if path.exists() else {})

    @property
    def flags(self) -> dict:
        """Official model flags."""
        return self.content["flags"]

    def weights(self) -> dict[str, np.ndarray]:
        """Returns the values of all variables by official name."""
        return {n: value(n, s) for n, s in self.content["variables"].items()}

    def images(self, batch: int = 1) -> np.ndarray:
        """Returns the input images, float32 0..255."""
        key = f"images/{self.content['name']}".encode()
        random = np.random.RandomState(zlib.crc32(key))
        shape = (batch, *self.flags["crop_size"], 3)
        return random.randint(0, 256, shape).astype(np.float32)

    def labels(self, batch: int) -> np.ndarray:
        """Returns the labels of a training case, uint8 with 255 ignored."""
        height, width = self.flags["crop_size"]
        classes = self.flags["num_classes"]
        key = f"labels/{self.content['name']}".encode()
        random = np.random.RandomState(zlib.crc32(key))
        shape = (batch, (height + 7) // 8, (width + 7) // 8)
        small = random.randint(0, classes + 1, shape)
        small[small == classes] = 255
        blocks = np.kron(small, np.ones((1, 8, 8), int))
        return blocks[:, :height, :width].astype(np.uint8)
