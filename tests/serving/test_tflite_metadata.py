"""MediaPipe's ImageSegmenter, which Android has too, opens exported TFLite files."""

import contextlib
import zipfile

import flatbuffers
import numpy as np
import pytest
from flatbuffers.table import Table

from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import ModelConfig
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.images.inputs import read_image
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.tflite_export import export_tflite

pytest.importorskip("ai_edge_litert.interpreter")
SIZE = (33, 49)
INFO = DatasetInfo("toys", ("a", "b", "c", "é"))
UINT32 = flatbuffers.number_types.Uint32Flags


def read_metadata(path):
    """Returns the root table of a file's metadata."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(path.read_bytes())
    (entry,) = [x for x in model.metadata if x.name == b"TFLITE_METADATA"]
    return read_root(bytes(model.buffers[entry.buffer].data), b"M001")


def read_root(content, identifier):
    assert content[4:8] == identifier
    return Table(content, int.from_bytes(content[:4], "little"))


def follow(table, *slots):
    """Returns the first table in each of nested vectors, by position of the field."""
    for slot in slots:
        start = table.Vector(table.Offset(4 + 2 * slot))
        table = Table(table.Bytes, table.Indirect(start))
    return table


def read_field(table, slot):
    """Returns the offset of a field from the start of a table; 0 if it is absent."""
    return table.Offset(4 + 2 * slot)


@pytest.mark.parametrize(
    ("output", "activation"), [("logits", 2), ("probabilities", 0), ("labels", None)]
)
def test_metadata_describes_pixels_classes_and_scores(
    strided_model, tmp_path, output, activation
):
    path = tmp_path / "m.tflite"
    export_tflite(strided_model, str(path), SIZE, output=output, info=INFO)
    graph = follow(read_metadata(path), 3)
    unit = follow(graph, 2, 4)  # of the input: NormalizationOptions
    options = Table(unit.Bytes, unit.Indirect(unit.Pos + read_field(unit, 1)))
    means, deviations = (options.Vector(read_field(options, i)) for i in (0, 1))
    floats = flatbuffers.number_types.Float32Flags
    assert (options.Get(floats, means), options.Get(floats, deviations)) == (0, 1)
    file = follow(graph, 3, 6)  # of the output
    name = file.String(read_field(file, 0) + file.Pos)
    with zipfile.ZipFile(path) as archive:
        assert archive.read(name.decode()).decode() == "a\nb\nc\né\n"
    assert bool(read_field(graph, 9)) == (activation is not None)
    if activation is not None:
        custom = follow(graph, 9)
        offset = read_field(custom, 1)
        start, length = custom.Vector(offset), custom.VectorLen(offset)
        nested = read_root(bytes(custom.Bytes[start : start + length]), b"V001")
        found = nested.GetSlot(4, 0, flatbuffers.number_types.Int8Flags)
        assert found == activation


@contextlib.contextmanager
def open_segmenter(path):
    """Yields the class names and a function from an image to labels and scores."""
    mediapipe = pytest.importorskip("mediapipe")
    vision = mediapipe.tasks.vision
    options = vision.ImageSegmenterOptions(
        mediapipe.tasks.BaseOptions(model_asset_path=str(path)),
        output_category_mask=True,
    )

    def segment(image):
        source = mediapipe.Image(mediapipe.ImageFormat.SRGB, image)
        result = segmenter.segment(source)
        scores = [np.squeeze(x.numpy_view()) for x in result.confidence_masks]
        return np.squeeze(result.category_mask.numpy_view()), np.stack(scores, -1)

    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        yield segmenter.labels, segment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "precision", "input_type", "share", "error"),
    [
        ("logits", "float32", "float32", 0.9999, 1e-4),
        ("probabilities", "float32", "uint8", 0.9999, 1e-4),
        ("probabilities", "float16", "float32", 0.999, 0.05),
        ("probabilities", "int8", "uint8", 0.98, 0.6),
    ],
)
def test_image_segmenter_labels_photos_like_the_model(
    voc_root, voc_checkpoint, tmp_path, output, precision, input_type, share, error
):
    pytest.importorskip("mediapipe")
    model = build_model(ModelConfig.from_official_flags({}))
    assert load_tf1_checkpoint(model, voc_checkpoint).complete
    images = []
    for path in sorted((voc_root / "JPEGImages").glob("*.jpg")):
        image = read_image(str(path))
        if min(image.shape[:2]) >= 321 and len(images) < 12:
            images.append(np.ascontiguousarray(image[:321, :321]))
    path, info = tmp_path / "m.tflite", dataset_info("pascal_voc_seg")
    calibration = images if precision == "int8" else None
    size = (321, 321)
    export_tflite(
        model, str(path), size, precision, output, calibration, info, input_type
    )
    predictor, shares, errors = Predictor(model), [], []
    with open_segmenter(path) as (names, segment):
        assert tuple(names) == tuple(info.class_names)
        for image in images:
            labels, scores = segment(image)
            expected = predictor.probabilities(image[None])[0]
            shares.append(np.mean(labels == predictor.labels(image[None])[0]))
            errors.append(np.abs(scores - expected).max())
    print(f"{output} {precision}: {np.mean(shares):.5%}, error {max(errors):.5f}")
    assert np.mean(shares) >= share
    assert max(errors) < error
