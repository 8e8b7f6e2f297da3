"""Reads the model config and the weights of TFLite files and frozen graphs.

Official exports do not store the config; it follows from the graph, including what the
weights do not show: strides, atrous rates and pooling windows.
"""

import dataclasses
import functools
import io
import os
import zipfile
import zlib
from collections.abc import Collection

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from deeplab_tf import strict_json
from deeplab_tf.checkpoints.graphs import tflite
from deeplab_tf.checkpoints.graphs.backbone import find_backbone
from deeplab_tf.checkpoints.graphs.convolutions import (
    ALIGN_CORNERS,
    HALF_PIXEL,
    Convolution,
    trace_convolutions,
)
from deeplab_tf.checkpoints.graphs.frozen import FrozenGraph
from deeplab_tf.checkpoints.graphs.heads import find_config
from deeplab_tf.checkpoints.graphs.keras_model import trace_model
from deeplab_tf.checkpoints.graphs.matching import MismatchError, extract_weights
from deeplab_tf.config import ModelConfig
from deeplab_tf.config.conventions import ConventionsConfig
from deeplab_tf.errors import UserError, one_line

TFLITE, FROZEN = ".tflite", ".pb"
# The ModelConfig in our exports: a file in the ZIP archive of a TFLite file, and a
# constant of a frozen graph.
MODEL_NOTE, MODEL_CONSTANT = "model.json", "model_config"
_FOLDED = "batch normalisation is folded, so train it with --batch_norm=freeze"
# Last parts of variable names, to find variables among the constants of a graph.
_LEAVES = {
    *("weights", "depthwise_weights", "biases"),
    *("gamma", "beta", "moving_mean", "moving_variance"),
}


@dataclasses.dataclass(frozen=True)
class ExportedGraph:
    """An exported model.

    Attributes:
        path: Path of the file.
        convolutions: The convolutions of its graph.
        named: `{official name: array}` if the graph has the official variables, or {}.
        stored: The config that our exports store; None for other files.
        remarks: Notes about the weights to print.
        resizings: Coordinate conventions of its resizes; see `name_resizing`.
    """

    path: str
    convolutions: list[Convolution]
    named: dict[str, np.ndarray]
    stored: ModelConfig | None
    remarks: tuple[str, ...] = ()
    resizings: frozenset[str] = frozenset()

    @functools.cached_property
    def config(self) -> ModelConfig:
        """The config, stored or found in the graph; prints the latter.

        Raises:
            UserError: if the graph is not that of a model of this package.
        """
        if self.stored:
            return self.stored
        try:
            found = find_backbone(self.convolutions)
            config = find_config(self.convolutions, found)
        except UserError as error:
            raise self._make_error(error) from error
        if self.resizings == {HALF_PIXEL}:
            conventions = ConventionsConfig(resizing=HALF_PIXEL)
            config = dataclasses.replace(config, conventions=conventions)
        print(f"note: {self.path} is {_describe_config(config)}")
        return config

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by official name; prints what is special about them.

        Raises:
            UserError: if the graph is not that of a model of this package.
        """
        if self.named:
            return self.named
        try:
            model = trace_model(self.config)
            arrays, unused = extract_weights(model, self.convolutions)
        except MismatchError as error:
            raise self._make_error(f"it lacks {error}") from error
        remarks = [_FOLDED, *self.remarks]
        if unused:
            remarks.append(f"{len(unused)} layers are unused ({unused[0]}, ...)")
        print(f"note: {self.path}: {'; '.join(remarks)}")
        return arrays

    def _make_error(self, reason: object) -> UserError:
        return UserError(
            f"{self.path} contains no weights of a DeepLab model: {reason}"
        )


def _describe_config(config: ModelConfig) -> str:
    """Returns the properties of a config that weights do not show, for messages."""
    width = config.depth_multiplier
    multiplier = f" (depth_multiplier {width})" if width != 1 else ""
    window = config.context.image_pooling_crop_size
    parts = [
        f"output_stride {config.output_stride}",
        f"atrous_rates {list(config.atrous_rates)}",
        f"decoder_output_stride {list(config.decoder_output_strides)}",
        *([f"image_pooling_crop_size {list(window)}"] if window else []),
    ]
    classes = f"{config.num_classes} classes"
    return f"{config.backbone}{multiplier} with {', '.join(parts)} and {classes}"


def is_exported_graph(path: str) -> bool:
    """Returns whether a path is a TFLite file or a frozen graph, by its name."""
    return path.endswith((TFLITE, FROZEN)) and tf.io.gfile.exists(path)


def find_exported_graphs(folder: str) -> list[str]:
    """Returns a list with the TFLite file or frozen graph in a folder, or [].

    Raises:
        UserError: if there are several, or the folder is a SavedModel.
    """
    found = [
        path
        for ending in (FROZEN, TFLITE)
        for path in tf.io.gfile.glob(os.path.join(folder, f"[!.]*{ending}"))
    ]
    if any(os.path.basename(path) == "saved_model.pb" for path in found):
        raise UserError(
            f"{folder} is an export (SavedModel); give the checkpoint that it was "
            "exported from"
        )
    if len(found) > 1:
        kind = "TFLite files or " if any(x.endswith(TFLITE) for x in found) else ""
        raise UserError(
            f"several {kind}frozen graphs in {folder}; give one: "
            f"{', '.join(sorted(found))}"
        )
    return found


def has_official_weights(path: str) -> bool:
    """Returns whether a frozen graph has weights with official names.

    Our exports have folded weights instead. A file that does not exist has none.
    """
    if not path.endswith(FROZEN) or not tf.io.gfile.exists(path):
        return False
    graph = _parse_frozen_graph(path)
    return any(n.op == "Const" and _is_official_variable(n.name) for n in graph.node)


def _is_official_variable(name: str) -> bool:
    return name.rpartition("/")[2] in _LEAVES


def read_exported_graph(path: str) -> ExportedGraph:
    """Reads a TFLite file or a frozen graph.

    Raises:
        UserError: if the file is damaged.
    """
    return _read_tflite(path) if path.endswith(TFLITE) else _read_frozen_graph(path)


def _parse_frozen_graph(path: str) -> tf.compat.v1.GraphDef:
    graph = tf.compat.v1.GraphDef()
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            graph.ParseFromString(file.read())
    except (DecodeError, tf.errors.OpError) as error:
        raise _make_read_error(path, "a frozen graph", error) from error
    return graph


def _make_read_error(path: str, kind: str, error: object) -> UserError:
    return UserError(f"{path} cannot be read as {kind}: {one_line(error)}")


def _read_frozen_graph(path: str) -> ExportedGraph:
    """Reads convolutions, official variables and stored config of a frozen graph."""
    try:
        graph = FrozenGraph(_parse_frozen_graph(path))
        convolutions = trace_convolutions(graph.operations)
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise _make_read_error(path, "a frozen graph", error) from error
    named = {n: x for n, x in graph.constants.items() if _is_official_variable(n)}
    # Tools that optimise graphs fold the normalisation but keep other names.
    if not any(name.endswith("/moving_variance") for name in named):
        named = {}
    stored = None
    if MODEL_CONSTANT in graph.constants:
        stored = _parse_config(graph.constants[MODEL_CONSTANT].item(), path)
    remarks = _describe_inexact_resizes(graph.resizings)
    resizings = frozenset(graph.resizings)
    return ExportedGraph(path, convolutions, named, stored, remarks, resizings)


def _parse_config(content: str | bytes, path: str) -> ModelConfig:
    where, required = f"{path}: its model config", ("backbone", "num_classes")
    return strict_json.from_json(ModelConfig, content, where, required)


def _describe_inexact_resizes(resizings: Collection[str]) -> tuple[str, ...]:
    """Returns a note if a model of this package cannot resize exactly like a graph."""
    others = sorted(set(resizings) - {ALIGN_CORNERS})
    if not others or set(resizings) == {HALF_PIXEL}:
        return ()
    return (
        f"its resizes do not align corners, as those of the model do, but are "
        f"{' and '.join(others)}, so labels near boundaries differ",
    )


def _read_tflite(path: str) -> ExportedGraph:
    """Reads the convolutions and the stored config of a TFLite file."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        graph = tflite.TFLiteGraph(content)
        convolutions = trace_convolutions(graph.operations)
    except (*tflite.DAMAGE, tf.errors.OpError) as error:
        raise _make_read_error(path, "a TFLite file", error) from error
    notes = read_notes(content, {MODEL_NOTE}, path)
    stored = _parse_config(notes[MODEL_NOTE], path) if notes else None
    remarks = _describe_inexact_resizes(graph.resizings)
    if graph.is_quantized:
        remarks = ("its 8-bit weights are dequantised", *remarks)
    resizings = frozenset(graph.resizings)
    return ExportedGraph(path, convolutions, {}, stored, remarks, resizings)


def read_notes(content: bytes, names: Collection[str], path: str) -> dict[str, bytes]:
    """Reads files from the ZIP archive in a TFLite file, such as its class names.

    Returns `{name: content}` of those `names` that the archive has; {} without one.
    """
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        return {}
    try:
        with zipfile.ZipFile(file) as archive:
            found = set(names).intersection(archive.namelist())
            return {name: _read_note(archive, name, path) for name in found}
    # Other errors mean: encrypted, unknown compression, damaged.
    except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:
        raise UserError(f"{path}: its metadata cannot be read: {error}") from error


def _read_note(archive: zipfile.ZipFile, name: str, path: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(strict_json.MAX_BYTES + 1)
    if len(content) > strict_json.MAX_BYTES:
        raise UserError(
            f"{path}: its metadata file {name} is larger than "
            f"{strict_json.MAX_BYTES:,} bytes"
        )
    return content
