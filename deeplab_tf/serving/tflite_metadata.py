"""Adds the metadata with which Android's ImageSegmenter opens a TFLite file.

MediaPipe and the older Task Library read it. It is a flatbuffer in the file; its schema
is `mediapipe/tasks/metadata/metadata_schema.fbs`, version 1.5.0. The files that it
names, such as the class names, are in a ZIP archive that follows the flatbuffer.
MediaPipe 1.2's own writer needs a module that its package lacks.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np

from deeplab_tf.errors import import_extra

LABELS = "labels.txt"
_NEEDED_BY = "TFLite files need"
# Numbers of the schema's unions and enumerations.
_NORMALIZATION_OPTIONS, _IMAGE_PROPERTIES, _TENSOR_AXIS_LABELS = 1, 2, 2
_COLOR_SPACES = {1: 2, 3: 1}  # greyscale and RGB, by number of channels
# `Activation` of image_segmenter_metadata_schema.fbs.
ACTIVATIONS = {"none": 0, "softmax": 2}
_Builder = flatbuffers.Builder


def add_metadata(
    content: bytes, channels: int, activation: str | None, notes: Mapping[str, str]
) -> bytes:
    """Returns a TFLite file with metadata and a ZIP archive.

    Args:
        content: The file, which takes pixels 0..255.
        channels: Number of image channels.
        activation: How ImageSegmenter turns the output into confidence masks, "none" or
            "softmax"; None if the output is labels, which it cannot read.
        notes: Content of the files in the archive by name; `LABELS`, if present, are
            the class names.
    """
    tools, schema = (
        import_extra(f"ai_edge_litert.{name}", "export", _NEEDED_BY)
        for name in ("tools.flatbuffer_utils", "schema_py_generated")
    )
    model = tools.read_model_from_bytearray(content)
    metadata = _make_metadata(channels, activation, LABELS in notes)
    model.buffers.append(schema.BufferT(np.frombuffer(metadata, np.uint8)))
    entry = schema.MetadataT("TFLITE_METADATA", len(model.buffers) - 1)
    model.metadata = [*(model.metadata or []), entry]
    file = io.BytesIO(tools.convert_object_to_bytearray(model))
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in notes.items():
            # With a fixed date, so that equal models give equal files.
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


def _make_metadata(channels: int, activation: str | None, has_labels: bool) -> bytes:
    """Returns a flatbuffer `ModelMetadata`."""
    builder = _Builder()
    graph = {
        2: _add_vector(builder, [_add_input(builder, channels)]),
        3: _add_vector(builder, [_add_output(builder, has_labels)]),
    }
    if activation is not None:
        graph[9] = _add_vector(builder, [_add_activation(builder, activation)])
    root = {
        0: builder.CreateString("DeepLab"),
        3: _add_vector(builder, [_add_table(builder, graph)]),
        # The first version of the parser that knows field 9 of a graph.
        7: builder.CreateString("1.5.0"),
    }
    builder.Finish(_add_table(builder, root), b"M001")
    return bytes(builder.Output())


def _add_input(builder: _Builder, channels: int) -> int:
    """Adds a `TensorMetadata` of pixels without normalisation; returns its offset."""
    normalization = {0: _add_float_vector(builder, 0), 1: _add_float_vector(builder, 1)}
    unit = {1: _add_table(builder, normalization)}
    fields = {
        0: builder.CreateString("image"),
        4: _add_vector(
            builder, [_add_table(builder, unit, {0: _NORMALIZATION_OPTIONS})]
        ),
        5: _add_table(
            builder,
            {0: _add_float_vector(builder, 255), 1: _add_float_vector(builder, 0)},
        ),
    }
    if channels in _COLOR_SPACES:
        properties = _add_table(builder, {}, {0: _COLOR_SPACES[channels]})
        fields[3] = _add_table(builder, {1: properties}, {0: _IMAGE_PROPERTIES})
    return _add_table(builder, fields)


def _add_output(builder: _Builder, has_labels: bool) -> int:
    """Adds a `TensorMetadata` of labels or scores; returns its offset."""
    fields = {0: builder.CreateString("segmentation")}
    if has_labels:
        name = builder.CreateString(LABELS)
        file = _add_table(builder, {0: name}, {2: _TENSOR_AXIS_LABELS})
        fields[6] = _add_vector(builder, [file])
    return _add_table(builder, fields)


def _add_activation(builder: _Builder, activation: str) -> int:
    """Adds a `CustomMetadata` with a nested flatbuffer `ImageSegmenterOptions`."""
    nested = _Builder()
    nested.Finish(_add_table(nested, {}, {0: ACTIVATIONS[activation]}), b"V001")
    name = builder.CreateString("SEGMENTER_METADATA")
    data = builder.CreateByteVector(bytes(nested.Output()))
    return _add_table(builder, {0: name, 1: data})


def _add_table(
    builder: _Builder, offsets: Mapping[int, int], numbers: Mapping[int, int] = {}
) -> int:
    """Adds a table.

    `offsets` are fields of any type and `numbers` fields of one byte, by their position
    in the schema, where a union takes two.
    """
    builder.StartObject(max([*offsets, *numbers]) + 1)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in numbers.items():
        builder.PrependInt8Slot(slot, number, 0)
    return builder.EndObject()


def _add_vector(builder: _Builder, items: Sequence[int]) -> int:
    """Adds a vector of tables; returns its offset."""
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return builder.EndVector()


def _add_float_vector(builder: _Builder, value: float) -> int:
    """Adds a vector with one float; returns its offset."""
    return builder.CreateNumpyVector(np.full(1, value, np.float32))
