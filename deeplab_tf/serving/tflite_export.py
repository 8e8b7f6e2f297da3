"""Exports a model as a TFLite file for images of one size."""

import io
import itertools
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import SIDE
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.network import NormalizeImage
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.serving.calibration import (
    IMAGES,
    check_calibration,
    pad_images,
    require_images,
)
from deeplab_tf.serving.choices import TFLITE_OUTPUTS, TFLITE_PRECISIONS
from deeplab_tf.serving.native_layers import (
    NATIVE_LAYERS,
    IntegerNormalizeImage,
    use_native_layers,
)
from deeplab_tf.serving.publication import TFLITE, publish_artefact, require_replaceable
from deeplab_tf.serving.signatures import INPUT, OUTPUT
from deeplab_tf.serving.tflite import EXPORT_NOTE, INFO_NOTE

LOGITS = "SemanticLogits"
# The name that TFLite's metadata tools expect.
_LABELS_NOTE = "labels.txt"
# Keeps the pixels of quantised models in 8 bits.
_QUANTIZED_LAYERS = NATIVE_LAYERS | {NormalizeImage: IntegerNormalizeImage}
# About the converter's own use of the interpreter and of quantisation.
_CONVERTER_WARNINGS = (
    r"\s*Warning: tf.lite.Interpreter is deprecated",
    "Statistics for quantized inputs were expected",
)


@check_arguments(
    model=BUILT,
    size=SIDE,
    precision=TFLITE_PRECISIONS,
    output=TFLITE_OUTPUTS,
    calibration=IMAGES,
)
def export_tflite(
    model: keras.Model,
    path: str,
    size: tuple[int, int],
    precision: str = "float32",
    output: str = "labels",
    calibration: Iterable | None = None,
    info: DatasetInfo | None = None,
) -> None:
    """Writes a TFLite file that labels images of one size.

    Its signature `serving_default` takes `ImageTensor` `[1, height, width, channels]`,
    RGB 0..255 as float32, or as uint8 if the precision is int8. Pad smaller images with
    the mean pixel at the bottom and the right, as `TFLitePredictor` does, to get the
    results of `Predictor` with `crop_size=size`. The file is also a ZIP archive with
    the mean pixel and the class names.

    Args:
        model: A float32 model of `build_model`, or a quantised one of `Trainer`, whose
            precision is int8.
        path: File to write atomically, ending in `.tflite`.
        size: Height and width; `k * output_stride + 1` aligns features and pixels.
        precision: "float32"; "float16" stores 16-bit weights; "dynamic" stores 8-bit
            weights and multiplies in 8 bits; "int8" uses 8 bits throughout, for
            accelerators that support nothing else.
        output: "labels" returns `SemanticPredictions`, int32 `[1, height, width]`;
            "logits" returns `SemanticLogits`, float32 `[1, height, width,
            num_classes]`.
        calibration: For int8, unless the model is quantised, images from which to
            measure the range of activations: `[height, width, channels]` or `[batch,
            height, width, channels]`, RGB 0..255, or the batches of `load_dataset(...,
            training=False)`. A hundred are enough. Images are padded or cropped to
            `size`.
        info: Class names and colours to store in the file.

    Raises:
        UserError: if a setting is invalid, or `path` may not be replaced.
    """
    if not path.endswith(TFLITE):
        raise UserError(
            f"the name of a TFLite file must end in .tflite; received {path}"
        )
    require_replaceable(path)
    content = convert_to_tflite(model, size, precision, output, calibration)
    content = _append_notes(content, model, precision, info)
    with publish_artefact(path) as unfinished, open(unfinished, "wb") as file:
        file.write(content)


def convert_to_tflite(
    model: keras.Model,
    size: tuple[int, int],
    precision: str = "float32",
    output: str = "labels",
    calibration: Iterable | None = None,
) -> bytes:
    """Returns the content of a TFLite file, without class names and mean pixel.

    The arguments are those of `export_tflite`.

    Raises:
        UserError: if a setting is invalid.
    """
    check_calibration(model, precision, calibration)
    samples: Iterable[np.ndarray] = ()
    if calibration is not None:
        samples = _prepare_samples(model, size, calibration)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        for message in _CONVERTER_WARNINGS:
            warnings.filterwarnings("ignore", message)
        _write_graph(model, size, output, folder)
        converter = _make_converter(folder, precision, samples)
        if is_quantized(model):
            # The graph has the ranges, and the converter does not measure any.
            converter.representative_dataset = None
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return converter.convert()


def _prepare_samples(
    model: keras.Model, size: tuple[int, int], images: Iterable
) -> Iterator[np.ndarray]:
    """Returns padded calibration images; raises UserError if there are none."""
    padded = require_images(pad_images(images, model.model_config.mean_pixel, size))
    first = next(padded)
    # Spans 0..255, so that the input is quantised with scale 1 and zero point 0.
    first[0, -1, -1], first[0, 0, 0] = 0, 255
    return itertools.chain([first], padded)


def _write_graph(
    model: keras.Model, size: tuple[int, int], output: str, folder: str
) -> None:
    network = use_native_layers(
        model, _QUANTIZED_LAYERS if is_quantized(model) else NATIVE_LAYERS
    )

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(images, training=False)
        if output == "logits":
            return {LOGITS: logits}
        return {OUTPUT: tf.argmax(logits, axis=-1, output_type=tf.int32)}

    shape = [1, *size, model.model_config.channels]
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        name="serving_default",
        fn=serve,
        input_signature=[tf.TensorSpec(shape, tf.float32, name=INPUT)],
    )
    archive.write_out(folder, verbose=False)


def _make_converter(
    folder: str, precision: str, samples: Iterable[np.ndarray]
) -> tf.lite.TFLiteConverter:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = lambda: ({INPUT: x} for x in samples)
        # Fails for operations without 8-bit kernels, instead of keeping them in float.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    return converter


def _append_notes(
    content: bytes, model: keras.Model, precision: str, info: DatasetInfo | None
) -> bytes:
    """Appends a ZIP archive with notes, as TFLite's metadata tools do."""
    export = {
        "precision": precision,
        "mean_pixel": list(model.model_config.mean_pixel),
    }
    notes = {EXPORT_NOTE: strict_json.dump(export)}
    if info is not None:
        notes[INFO_NOTE] = info.to_json()
        notes[_LABELS_NOTE] = "".join(f"{name}\n" for name in info.class_names)
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in notes.items():
            # With a fixed date, so that equal models give equal files.
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()
