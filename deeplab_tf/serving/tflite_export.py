"""A model becomes a TFLite file: one size, labels or logits, down to 8 bits."""

import io
import itertools
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf import strict_json
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.serving.artefact import pad_to_size
from deeplab_tf.serving.native_layers import native
from deeplab_tf.serving.publication import TFLITE, publish_artefact, require_replaceable
from deeplab_tf.serving.signatures import INPUT, OUTPUT
from deeplab_tf.serving.tflite import EXPORT_NOTE, INFO_NOTE

LOGITS = "SemanticLogits"
PRECISIONS = ("float32", "float16", "dynamic", "int8")
OUTPUTS = ("labels", "logits")
# Where the metadata tools of TFLite look for class names.
_LABELS_NOTE = "labels.txt"
# The converter's own, about the interpreter and the quantisation that it uses itself.
_CONVERTER_WARNINGS = (
    r"\s*Warning: tf.lite.Interpreter is deprecated",
    "Statistics for quantized inputs were expected",
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
    RGB 0..255 as float32, or as uint8 if the precision is int8. Smaller images are to
    be padded with the mean pixel at the bottom and the right, as `TFLitePredictor`
    does: the result is that of `Predictor` with the crop size `size`. The file also is
    a ZIP archive, which holds the mean pixel and the class names.

    Args:
        model: A model of `build_model`, of float32.
        path: File to write, `.tflite` at its end; replaced once the new one is whole.
        size: Height and width; `k * output_stride + 1` align features and pixels.
        precision: "float32"; "float16" stores the weights in half the bytes; "dynamic"
            stores them in 8 bits and computes products in these; "int8" has 8 bits
            throughout, for accelerators that have no other numbers.
        output: "labels" gives `SemanticPredictions`, int32 `[1, height, width]`;
            "logits" gives `SemanticLogits`, float32 `[1, height, width, num_classes]`.
        calibration: For int8, images that show which values occur: `[height, width,
            channels]` or `[batch, height, width, channels]`, RGB 0..255, or the
            batches of `load_dataset(..., training=False)`. A hundred are enough; what
            exceeds `size` is cut off.
        info: Class names and colours to send along.

    Raises:
        UserError: for settings that cannot work.
    """
    if not path.endswith(TFLITE):
        raise UserError(f"a TFLite file has .tflite at its end; received {path}")
    require_replaceable(path)
    content = tflite_content(model, size, precision, output, calibration)
    content = _with_notes(content, model, precision, info)
    with publish_artefact(path) as unfinished, open(unfinished, "wb") as file:
        file.write(content)


def tflite_content(
    model: keras.Model,
    size: tuple[int, int],
    precision: str = "float32",
    output: str = "labels",
    calibration: Iterable | None = None,
) -> bytes:
    """Returns what `export_tflite` writes, without class names and mean pixel.

    Args:
        model: As in `export_tflite`, and so are the others.
        size: Height and width.
        precision: One of `PRECISIONS`.
        output: One of `OUTPUTS`.
        calibration: Images, for int8.

    Raises:
        UserError: for settings that cannot work.
    """
    _check(size, precision, output, calibration)
    # Looked at before the conversion, which takes a while.
    samples = () if calibration is None else _samples(model, size, calibration)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        for message in _CONVERTER_WARNINGS:
            warnings.filterwarnings("ignore", message)
        _write_graph(model, size, output, folder)
        return _converter(folder, precision, samples).convert()


def _check(
    size: tuple[int, int], precision: str, output: str, calibration: Iterable | None
) -> None:
    choices = (("precision", precision, PRECISIONS), ("output", output, OUTPUTS))
    for name, value, known in choices:
        if value not in known:
            raise UserError(
                f"{name} must be one of {', '.join(known)}; received {value!r}"
            )
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"size must be a height and a width; received {size}")
    if (calibration is not None) != (precision == "int8"):
        raise UserError(
            "calibration images are for the precision int8, which needs them; received "
            f"{precision} {'without' if calibration is None else 'with'} images"
        )


def _samples(
    model: keras.Model, size: tuple[int, int], images: Iterable
) -> Iterator[np.ndarray]:
    """Returns images as the file takes them, before they are asked for.

    Raises:
        UserError: if there are no images.
    """
    padded = calibration_images(images, model.model_config.mean_pixel, size)
    first = next(padded, None)
    if first is None:
        raise UserError("calibration needs an image at least; received none")
    # The whole range of a byte, so that bytes are pixels: scale 1 and zero point 0.
    first[0, -1, -1], first[0, 0, 0] = 0, 255
    return itertools.chain([first], padded)


def calibration_images(
    images: Iterable, mean_pixel: tuple[float, ...], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields images padded to a size, float32 `[1, height, width, channels]`.

    Args:
        images: As `calibration` of `export_tflite`.
        mean_pixel: What images are padded with.
        size: Height and width; what exceeds them is cut off.
    """
    for element in images:
        for image in _images(element):
            yield pad_to_size(image, size, mean_pixel)


def _images(element: ArrayLike | tuple) -> np.ndarray:
    """Returns the images, `[batch, h, w, channels]`, of an element of a dataset."""
    images = np.asarray(element[0] if isinstance(element, tuple) else element)
    return images[None] if images.ndim == 3 else images


def _write_graph(
    model: keras.Model, size: tuple[int, int], output: str, folder: str
) -> None:
    """Writes a SavedModel for images of a size."""
    network = native(model)

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


def _converter(
    folder: str, precision: str, samples: Iterable[np.ndarray]
) -> tf.lite.TFLiteConverter:
    """Returns what converts a SavedModel."""
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = lambda: ({INPUT: x} for x in samples)
        # An operation that has no 8 bits is an error, not a float among them.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    return converter


def _with_notes(
    content: bytes, model: keras.Model, precision: str, info: DatasetInfo | None
) -> bytes:
    """Returns a file with a ZIP archive behind it, as TFLite's metadata have it."""
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
            # Of a fixed date, so that equal models are equal files.
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()
