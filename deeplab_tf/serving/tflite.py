"""Loads TFLite files, whose input has a fixed size."""

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.checkpoints.exported_graph import read_notes
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, import_extra, one_line
from deeplab_tf.inference import most_probable, resize_to
from deeplab_tf.serving.artefact import (
    Artefact,
    format_size,
    pad_to_size,
    read_file,
)
from deeplab_tf.serving.signatures import INPUT
from deeplab_tf.windows import slide_window

# Default padding of images.
_MEAN_PIXEL = np.float32(127.5)
# Files in the ZIP archive that our exports append to a TFLite file.
INFO_NOTE, EXPORT_NOTE = "dataset_info.json", "export.json"
# Allowed deviation of sums of probabilities from 1, without quantisation.
_SUM_TOLERANCE = 1e-3


class TFLitePredictor(Artefact):
    """A TFLite file, loaded for evaluation and prediction.

    The input has a fixed size. Smaller images are padded at the bottom and right with
    the mean pixel, by default 127.5, as in the official protocol. Larger images are
    labelled with a sliding window that overlaps by a third, as in `Predictor`.

    If the input is uint8 or is called `ImageTensor`, as in official exports and ours,
    its pixels are 0..255; otherwise they are -1..1, as in the official mobile files.
    They are quantised if the file says so.

    The output is integer labels `[1, H, W]` or `[1, H, W, 1]` at the size of the input,
    or scores `[1, h, w, num_classes]` of any size. Scores that sum to 1 are
    probabilities; other scores are logits. Quantised scores are dequantised.

    Raises:
        UserError: if the file is damaged or has other inputs or outputs, or the
            interpreter is not installed.
    """

    def __init__(self, path: str):
        needed_by = f"{path}: TFLite files need"
        engine = import_extra("ai_edge_litert.interpreter", "export", needed_by)
        content, self._lock = read_file(path), threading.Lock()
        self._interpreter = _load_interpreter(engine.Interpreter, content, path)
        self._input = _find_input(self._interpreter, path)
        self._takes_pixels = _is_image_tensor(self._interpreter, self._input)
        *self._size, channels = self._input["shape"][1:].tolist()
        self._output = _find_output(self._interpreter, self._size, path)
        notes, info = read_notes(content, {INFO_NOTE, EXPORT_NOTE}, path), None
        if INFO_NOTE in notes:
            info = DatasetInfo.from_json(notes[INFO_NOTE], f"{path}: {INFO_NOTE}")
        self._mean_pixel, note = _parse_export_note(notes, channels, path)
        has_scores = _is_scores(self._output)
        classes = int(self._output["shape"][-1]) if has_scores else None
        protocol = {"artefact": "TFLite", "input_size": self._size} | note
        super().__init__(path, channels, info, protocol, has_scores, classes)

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """Converts pixels 0..255 to the range and type of the input."""
        dtype = self._input["dtype"]
        if dtype == np.uint8:
            return _round_to(pixels, dtype)
        values = pixels if self._takes_pixels else pixels / _MEAN_PIXEL - 1
        if np.issubdtype(dtype, np.floating):
            return values.astype(dtype)
        scale, zero_point = self._input["quantization"]
        return _round_to(values / scale + zero_point, dtype)

    def _run(self, image) -> np.ndarray:
        """Returns the dequantised output for an image `[1, height, width, channels]`.

        The image has values 0..255 and is at most as large as the input.
        """
        padded = pad_to_size(np.asarray(image)[0], self._size, self._mean_pixel)
        pixels = self._encode(padded)
        with self._lock:  # an interpreter has one copy of its tensors
            self._interpreter.set_tensor(self._input["index"], pixels)
            self._interpreter.invoke()
            output = self._interpreter.get_tensor(self._output["index"])
        scale, zero_point = self._output["quantization"]
        if np.issubdtype(output.dtype, np.integer) and scale:
            output = np.float32(scale) * (output.astype(np.float32) - zero_point)
        return output

    def _score(self, image):
        """Returns the scores of an image that fits, at the image's size."""
        height, width = image.shape[1:3]
        scores = tf.constant(self._run(image), tf.float32)
        return resize_to(scores, self._size)[:, :height, :width]

    def _predict_in_windows(self, image, finish: Callable) -> np.ndarray:
        """Returns `finish(scores)` for an image of any size."""
        height, width = image.shape[1:3]
        rows, columns = min(height, self._size[0]), min(width, self._size[1])

        def score(top, left):
            return self._score(image[:, top : top + rows, left : left + columns])

        shape = (1, height, width, int(self._output["shape"][-1]))
        return slide_window(score, shape, (rows, columns), finish).numpy()

    def _label(self, image) -> np.ndarray:
        """Returns the labels of an image that fits, from a file without scores."""
        height, width = image.shape[1:3]
        if height > self._size[0] or width > self._size[1]:
            needed = f"{max(height, self._size[0])},{max(width, self._size[1])}"
            raise UserError(
                f"{self._path} only returns labels, for images of up to "
                f"{format_size(self._size)}; received {format_size((height, width))}; "
                f"export with --crop_size={needed} or larger, or with "
                "--tflite_output=logits to slide a window over larger images"
            )
        labels = self._run(image).reshape(1, *self._size)
        return labels[:, :height, :width].astype(np.int32)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        if self.gives_probabilities:
            labels = [
                self._predict_in_windows(image[None], most_probable) for image in images
            ]
        else:
            labels = [self._label(image[None]) for image in images]
        return np.concatenate(labels)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                self._predict_in_windows(image[None], self._to_probabilities)
                for image in images
            ]
        )

    def _to_probabilities(self, scores):
        """Applies the softmax, unless the scores already are probabilities."""
        scale, _ = self._output["quantization"]
        tolerance = _SUM_TOLERANCE + scores.shape[-1] * scale / 2
        sums = tf.reduce_sum(scores, -1, keepdims=True)
        if tf.reduce_min(scores) >= 0 and tf.reduce_all(tf.abs(sums - 1) <= tolerance):
            return scores / sums
        return tf.nn.softmax(scores)


@dataclasses.dataclass(frozen=True)
class _ExportNote:
    """The JSON of `EXPORT_NOTE`."""

    precision: str
    mean_pixel: list[float]


def _parse_export_note(
    notes: dict, channels: int, path: str
) -> tuple[np.ndarray, dict]:
    """Returns the mean pixel, and a protocol entry with the precision.

    The entry is empty if the file has no note.
    """
    if EXPORT_NOTE not in notes:
        return np.float32(_MEAN_PIXEL), {}
    where = f"{path}: {EXPORT_NOTE}"
    note = strict_json.from_json(_ExportNote, notes[EXPORT_NOTE], where)
    if len(note.mean_pixel) != channels:
        raise UserError(
            f"{where}: mean_pixel must have {channels} values, one for each channel; "
            f"received {len(note.mean_pixel)}"
        )
    return np.float32(note.mean_pixel), {"precision": note.precision}


def _load_interpreter(interpreter_class: type, content: bytes, path: str):
    try:
        interpreter = interpreter_class(model_content=content)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(f"{path} cannot be read as a TFLite file: {reason}") from error
    return interpreter


def _find_input(interpreter, path: str) -> dict:
    """Returns the input; raises UserError unless it is one image of fixed size."""
    details = interpreter.get_input_details()
    shapes = [detail["shape_signature"].tolist() for detail in details]
    batch, *shape = shapes[0] if len(shapes) == 1 else [0]
    # An unknown batch size (-1) is 1 here.
    if abs(batch) != 1 or len(shape) != 3 or min(shape) < 1:
        raise UserError(
            f"{path} has inputs of shape {' and '.join(map(str, shapes))}; it must "
            "have one input [1, height, width, channels]; export it with a fixed size"
        )
    detail = details[0]
    is_real = np.issubdtype(detail["dtype"], np.floating)
    if not (is_real or detail["dtype"] == np.uint8 or detail["quantization"][0]):
        raise UserError(
            f"{path} takes {np.dtype(detail['dtype'])}; pixels must be float32, uint8 "
            "or quantised"
        )
    return detail


def _is_image_tensor(interpreter, detail: dict) -> bool:
    """Returns whether the only input is called `ImageTensor`."""
    # The converter adds a prefix to the name of a signature's input.
    name = detail["name"].partition(":")[0].removeprefix("serving_default_")
    signatures = interpreter.get_signature_list().values()
    return INPUT in {name, *(n for s in signatures for n in s["inputs"])}


def _find_output(interpreter, size: list[int], path: str) -> dict:
    """Returns the output with scores or, without one, the output with labels."""
    details = interpreter.get_output_details()
    labels = [d for d in details if _is_labels(d, size)]
    found = [d for d in details if _is_scores(d)] + labels
    if not found:
        shapes = [f"{np.dtype(d['dtype'])} {d['shape'].tolist()}" for d in details]
        raise UserError(
            f"{path} returns {' and '.join(shapes)}; scores [1, height, width, "
            f"classes] or integer labels [1, {size[0]}, {size[1]}] are needed"
        )
    return found[0]


def _is_scores(detail: dict) -> bool:
    """Returns whether an output is `[1, height, width, classes]` of real numbers."""
    shape = detail["shape"]
    is_real = np.issubdtype(detail["dtype"], np.floating)
    is_quantized = detail["quantization"][0] > 0
    return len(shape) == 4 and shape[-1] > 1 and (is_real or is_quantized)


def _is_labels(detail: dict, size: list[int]) -> bool:
    """Returns whether an output is integer labels of this size."""
    shape = detail["shape"].tolist()
    is_integer = np.issubdtype(detail["dtype"], np.integer)
    return is_integer and shape in ([1, *size], [1, *size, 1])


def _round_to(values: np.ndarray, dtype) -> np.ndarray:
    """Rounds and clips values to an integer type."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
