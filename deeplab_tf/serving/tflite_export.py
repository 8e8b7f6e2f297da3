"""Exports a model as a TFLite file for images of one size.

TensorFlow's converter makes the float32 file: LiteRT's own (litert-converter 0.5) only
converts graphs of JAX and PyTorch. LiteRT does the rest (`tflite_quantizer`), but not
for quantised models, whose ranges only TensorFlow's converter reads.
"""

import dataclasses
import tempfile
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints.exported_graph import MODEL_NOTE
from deeplab_tf.config.options import SIDE
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, require_extra
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.serving import tflite_quantizer
from deeplab_tf.serving.calibration import (
    IMAGES,
    check_calibration,
    pad_images,
    require_images,
)
from deeplab_tf.serving.choices import (
    TFLITE,
    TFLITE_INPUTS,
    TFLITE_OUTPUTS,
    TFLITE_PRECISIONS,
)
from deeplab_tf.serving.native_layers import (
    INTEGER_LAYERS,
    NATIVE_LAYERS,
    use_native_layers,
)
from deeplab_tf.serving.publication import publish_artefact, require_replaceable
from deeplab_tf.serving.signatures import INPUT, OUTPUT, PROBABILITIES, SERVING
from deeplab_tf.serving.tflite import EXPORT_NOTE, INFO_NOTE
from deeplab_tf.serving.tflite_metadata import LABELS, add_metadata

LOGITS = "SemanticLogits"
# How ImageSegmenter turns an output into probabilities; it cannot read labels.
_ACTIVATIONS = {"logits": "softmax", "probabilities": "none"}


@check_arguments(
    model=BUILT,
    size=SIDE,
    precision=TFLITE_PRECISIONS,
    output=TFLITE_OUTPUTS,
    calibration=IMAGES,
    input_type=TFLITE_INPUTS,
)
def export_tflite(  # noqa: PLR0913 - they are flags of export.py
    model: keras.Model,
    path: str,
    size: tuple[int, int],
    precision: str = "float32",
    output: str = "labels",
    calibration: Iterable | None = None,
    info: DatasetInfo | None = None,
    input_type: str | None = None,
    float_layers: Collection[str] = (),
) -> None:
    """Writes a TFLite file that labels images of one size.

    Its signature `serving_default` takes `ImageTensor` `[1, height, width, channels]`,
    RGB 0..255. Pad smaller images with the mean pixel at the bottom and the right, as
    `TFLitePredictor` does, to get the results of `Predictor` with `crop_size=size`. The
    file has the metadata for MediaPipe's ImageSegmenter, and is also a ZIP archive with
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
            "category_mask" the same as an image, uint8 `[1, height, width, 1]`;
            "logits" returns `SemanticLogits`, float32 `[1, height, width,
            num_classes]`; "probabilities" returns `SemanticProbabilities`, float32 or,
            if the precision is int8, uint8 (times 256) of that shape. ImageSegmenter
            reads logits and probabilities.
        calibration: For int8, unless the model is quantised, images from which to
            measure the range of activations: `[height, width, channels]` or `[batch,
            height, width, channels]`, RGB 0..255, or the batches of `load_dataset(...,
            training=False)`. A hundred are enough. Images are padded or cropped to
            `size`.
        info: Class names and colours to store in the file.
        input_type: Type of the pixels, "float32" or "uint8"; None is uint8 if the
            precision is int8, and float32 otherwise.
        float_layers: For int8, names of layers to leave in float32.

    Raises:
        UserError: if LiteRT is not installed, a setting is invalid, or `path` may not
            be replaced.
    """
    if not path.endswith(TFLITE):
        raise UserError(
            f"the name of a TFLite file must end in .tflite; received {path}"
        )
    require_replaceable(path)
    quantizes = precision != "float32" and not is_quantized(model)
    require_tflite(path, quantizes)
    content = convert_to_tflite(
        model, size, precision, output, calibration, input_type, float_layers
    )
    notes = _make_notes(model, precision, info)
    channels = model.model_config.channels
    content = add_metadata(content, channels, _ACTIVATIONS.get(output), notes)
    with publish_artefact(path) as unfinished, open(unfinished, "wb") as file:
        file.write(content)


def require_tflite(path: str, quantizes: bool) -> None:
    """Raises UserError if a package for an export is not installed."""
    needed = ["ai_edge_litert"]
    needed += [tflite_quantizer.MODULE] if quantizes else []
    require_extra(needed, "export", f"{path}: TFLite files need")


def convert_to_tflite(
    model: keras.Model,
    size: tuple[int, int],
    precision: str = "float32",
    output: str = "labels",
    calibration: Iterable | None = None,
    input_type: str | None = None,
    float_layers: Collection[str] = (),
) -> bytes:
    """Returns the content of a TFLite file, without class names and mean pixel.

    The arguments are those of `export_tflite`, and `float_layers`, the names of layers
    that stay in float32 if the precision is int8.

    Raises:
        UserError: if a setting is invalid.
    """
    check_calibration(model, precision, calibration)
    _check_class_count(model, output)
    config, samples = model.model_config, _prepare_samples(model, size, calibration)
    input_type = input_type or ("uint8" if precision == "int8" else "float32")
    output_type = "float32" if output == "logits" else "uint8"
    # The type of an int8 file's input is set after the conversion.
    spec_type = "float32" if precision == "int8" else input_type
    spec = tf.TensorSpec([1, *size, config.channels], spec_type, name=INPUT)
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, spec, output, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if is_quantized(model):
            has_scores = output == "probabilities"
            return _convert_quantized(converter, input_type, has_scores)
        content = converter.convert()
    if precision == "float32":
        return content
    return tflite_quantizer.quantize_tflite(
        content, precision, samples, input_type, output_type, float_layers
    )


def _prepare_samples(
    model: keras.Model, size: tuple[int, int], images: Iterable | None
) -> Iterable[np.ndarray]:
    """Returns padded calibration images; raises UserError if they are empty."""
    if images is None:
        return ()
    return require_images(pad_images(images, model.model_config.mean_pixel, size))


def _check_class_count(model: keras.Model, output: str) -> None:
    """Raises UserError for a category mask of more than 256 classes."""
    classes = model.model_config.num_classes
    if output == "category_mask" and classes > 256:
        raise UserError(
            f"a category mask has 8 bits, for 256 classes; the model has {classes}; "
            "export labels"
        )


def _write_saved_model(
    model: keras.Model, spec: tf.TensorSpec, output: str, folder: str
) -> None:
    """Writes the network with the chosen output, for the converter."""
    rounding = INTEGER_LAYERS if is_quantized(model) else {}
    network = use_native_layers(model, NATIVE_LAYERS | rounding)

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(tf.cast(images, tf.float32), training=False)
        if output == "logits":
            return {LOGITS: logits}
        if output == "probabilities":
            return {PROBABILITIES: tf.nn.softmax(logits)}
        labels = tf.argmax(logits, axis=-1, output_type=tf.int32)
        if output == "category_mask":
            labels = tf.cast(labels, tf.uint8)[..., None]
        return {OUTPUT: labels}

    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(name=SERVING, fn=serve, input_signature=[spec])
    archive.write_out(folder, verbose=False)


def _convert_quantized(converter: Any, input_type: str, has_scores: bool) -> bytes:
    """Returns an int8 file of a quantised model, which brings its own ranges."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.as_dtype(input_type)
    if has_scores:
        converter.inference_output_type = tf.uint8
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were exp")
        return converter.convert()


def _make_notes(
    model: keras.Model, precision: str, info: DatasetInfo | None
) -> dict[str, str]:
    """Returns the files in the archive of an export, by name."""
    export = {
        "precision": precision,
        "mean_pixel": list(model.model_config.mean_pixel),
    }
    config = dataclasses.asdict(model.model_config)
    notes = {
        EXPORT_NOTE: strict_json.dump(export),
        MODEL_NOTE: strict_json.dump(config),
    }
    if info is not None:
        notes[INFO_NOTE] = info.to_json()
        notes[LABELS] = "".join(f"{name}\n" for name in info.class_names)
    return notes
