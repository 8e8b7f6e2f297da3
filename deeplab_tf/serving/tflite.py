"""A model as a TFLite file: images of one size in, labels or scores out."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import most_probable, resize_to
from deeplab_tf.serving.artefact import (
    Artefact,
    import_extra,
    pad_to_size,
    read_file,
    size_text,
)
from deeplab_tf.serving.signatures import INPUT
from deeplab_tf.windows import slide_window

# What images are padded with, unless a file tells its own.
_MEAN_PIXEL = np.float32(127.5)
# What our exports tell of themselves, in the ZIP archive behind the file.
INFO_NOTE, EXPORT_NOTE = "dataset_info.json", "export.json"
# How far sums of probabilities may be from 1, besides what quantisation does.
_NEARLY = 1e-3


class TFLitePredictor(Artefact):
    """A TFLite file as evaluation and prediction look at it.

    A file takes images of one size. Smaller ones are padded at the bottom and the
    right with the mean pixel, 127.5 unless the file tells another, as the official
    protocol does; larger ones are seen through windows that overlap by a third, where
    what they see is blended as `Predictor` does it.

    An input of uint8 takes the pixels 0..255 as they are. Any other input takes 0..255
    if it is called `ImageTensor` (the official name of exports, and ours), else -1..1
    as the official mobile files do, quantised where the file says so.

    The output is integer labels `[1, H, W]` or `[1, H, W, 1]`, of the input's size, or
    scores `[1, h, w, num_classes]` of any size: logits or probabilities, which are told
    apart by their sums. Quantised scores are made real.

    Args:
        path: The file.

    Raises:
        UserError: if the file is broken or of another kind, or the interpreter is not
            installed.
    """

    def __init__(self, path: str):
        engine = import_extra("ai_edge_litert.interpreter", path, "TFLite")
        content = read_file(path)
        self._interpreter = _interpreter(engine.Interpreter, content, path)
        self._input = _image_input(self._interpreter, path)
        self._takes_pixels = _is_named_as_ours(self._interpreter, self._input)
        *self._size, channels = self._input["shape"][1:].tolist()
        self._output = _output(self._interpreter, self._size, path)
        notes, info = _notes(content, path), None
        if INFO_NOTE in notes:
            info = DatasetInfo.from_json(notes[INFO_NOTE], f"{path}: {INFO_NOTE}")
        self._mean_pixel, told = _export_note(notes, channels, path)
        has_scores = _are_scores(self._output)
        classes = int(self._output["shape"][-1]) if has_scores else None
        protocol = {"artefact": "TFLite", "input_size": self._size} | told
        super().__init__(path, channels, info, protocol, has_scores, classes)

    def _fed(self, pixels: np.ndarray) -> np.ndarray:
        """Returns pixels 0..255 as the file takes them."""
        dtype = self._input["dtype"]
        if dtype == np.uint8:
            return _rounded(pixels, dtype)
        values = pixels if self._takes_pixels else pixels / _MEAN_PIXEL - 1
        if np.issubdtype(dtype, np.floating):
            return values.astype(dtype)
        scale, zero_point = self._input["quantization"]
        return _rounded(values / scale + zero_point, dtype)

    def _given(self, image) -> np.ndarray:
        """Returns what the file gives for an image that fits, as real numbers.

        Args:
            image: 0..255, `[1, height, width, channels]`.
        """
        framed = pad_to_size(np.asarray(image)[0], self._size, self._mean_pixel)
        self._interpreter.set_tensor(self._input["index"], self._fed(framed))
        self._interpreter.invoke()
        given = self._interpreter.get_tensor(self._output["index"])
        scale, zero_point = self._output["quantization"]
        if np.issubdtype(given.dtype, np.integer) and scale:
            given = np.float32(scale) * (given.astype(np.float32) - zero_point)
        return given

    def _scores(self, image):
        """Returns scores of an image that fits, at its own size."""
        height, width = image.shape[1:3]
        given = tf.constant(self._given(image), tf.float32)
        return resize_to(given, self._size)[:, :height, :width]

    def _through_windows(self, image, finish: Callable) -> np.ndarray:
        """Returns `finish` of the scores of an image of any size."""
        height, width = image.shape[1:3]
        rows, columns = min(height, self._size[0]), min(width, self._size[1])

        def score(top, left):
            return self._scores(image[:, top : top + rows, left : left + columns])

        shape = (1, height, width, int(self._output["shape"][-1]))
        return slide_window(score, shape, (rows, columns), finish).numpy()

    def _labels_only(self, image) -> np.ndarray:
        """Returns the labels of an image, which has to fit."""
        height, width = image.shape[1:3]
        if height > self._size[0] or width > self._size[1]:
            raise UserError(
                f"{self._path} gives labels only, and of images up to "
                f"{size_text(self._size)}; received {size_text((height, width))}; a "
                "file of logits sees larger ones through windows"
            )
        labels = self._given(image).reshape(1, *self._size)
        return labels[:, :height, :width].astype(np.int32)

    def _finished(self, images, finish: Callable) -> np.ndarray:
        """Returns `finish` of the scores of images, one after the other."""
        return np.concatenate([self._through_windows(x[None], finish) for x in images])

    def _labels(self, images: np.ndarray) -> np.ndarray:
        if self.gives_probabilities:
            return self._finished(images, most_probable)
        return np.concatenate([self._labels_only(image[None]) for image in images])

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._finished(images, self._as_probabilities)

    def _as_probabilities(self, scores):
        """Returns the softmax of scores, unless they are probabilities already."""
        scale, _ = self._output["quantization"]
        tolerance = _NEARLY + scores.shape[-1] * scale / 2
        sums = tf.reduce_sum(scores, -1, keepdims=True)
        if tf.reduce_min(scores) >= 0 and tf.reduce_all(tf.abs(sums - 1) <= tolerance):
            return scores / sums
        return tf.nn.softmax(scores)


def _notes(content: bytes, path: str) -> dict:
    """Returns what a file of ours tells of itself, by the name of the note."""
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        return {}
    try:
        with zipfile.ZipFile(file) as archive:
            found = {INFO_NOTE, EXPORT_NOTE}.intersection(archive.namelist())
            return {name: _read_note(archive, name, path) for name in found}
    # Beyond zipfile's own error: encrypted, of an unknown method, damaged.
    except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:
        raise UserError(f"{path}: its notes cannot be read: {error}") from error


def _read_note(archive: zipfile.ZipFile, name: str, path: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(strict_json.MAX_BYTES + 1)
    if len(content) > strict_json.MAX_BYTES:
        raise UserError(f"{path}: its {name} is too large")
    return content


@dataclasses.dataclass(frozen=True)
class _ExportNote:
    """The JSON of `EXPORT_NOTE`."""

    precision: str
    mean_pixel: list[float]


def _export_note(notes: dict, channels: int, path: str) -> tuple[np.ndarray, dict]:
    """Returns the mean pixel, and the protocol of the export."""
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


def _interpreter(interpreter_class: type, content: bytes, path: str):
    """Returns the interpreter of a file, ready to run."""
    try:
        interpreter = interpreter_class(model_content=content)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a TFLite file: {error}") from error
    return interpreter


def _image_input(interpreter, path: str) -> dict:
    """Returns the only input, which is an image of a fixed size."""
    details = interpreter.get_input_details()
    shapes = [detail["shape_signature"].tolist() for detail in details]
    batch, *shape = shapes[0] if len(shapes) == 1 else [0]
    # A batch that is open (-1) is one image here.
    if abs(batch) != 1 or len(shape) != 3 or min(shape) < 1:
        raise UserError(
            f"{path} takes {' and '.join(map(str, shapes))}; one image "
            "[1, height, width, channels] of a fixed size is needed"
        )
    detail = details[0]
    is_real = np.issubdtype(detail["dtype"], np.floating)
    if not (is_real or detail["dtype"] == np.uint8 or detail["quantization"][0]):
        raise UserError(
            f"{path} takes {np.dtype(detail['dtype'])}; pixels are float32, uint8 or "
            "quantised"
        )
    return detail


def _is_named_as_ours(interpreter, detail: dict) -> bool:
    """Whether the only input is called `ImageTensor`."""
    # What the converter makes of the name of a signature's input.
    name = detail["name"].partition(":")[0].removeprefix("serving_default_")
    signatures = interpreter.get_signature_list().values()
    return INPUT in {name, *(n for s in signatures for n in s["inputs"])}


def _output(interpreter, size: list[int], path: str) -> dict:
    """Returns the output that tells most: scores before labels."""
    details = interpreter.get_output_details()
    labels = [d for d in details if _are_labels(d, size)]
    found = [d for d in details if _are_scores(d)] + labels
    if not found:
        shapes = [f"{np.dtype(d['dtype'])} {d['shape'].tolist()}" for d in details]
        raise UserError(
            f"{path} gives {' and '.join(shapes)}; scores [1, height, width, classes] "
            f"or integer labels [1, {size[0]}, {size[1]}] are needed"
        )
    return found[0]


def _are_scores(detail: dict) -> bool:
    """Whether an output is `[1, height, width, classes]` of real numbers."""
    shape = detail["shape"]
    is_real = np.issubdtype(detail["dtype"], np.floating)
    is_quantized = detail["quantization"][0] > 0
    return len(shape) == 4 and shape[-1] > 1 and (is_real or is_quantized)


def _are_labels(detail: dict, size: list[int]) -> bool:
    """Whether an output is integer class ids of a size."""
    shape = detail["shape"].tolist()
    is_integer = np.issubdtype(detail["dtype"], np.integer)
    return is_integer and shape in ([1, *size], [1, *size, 1])


def _rounded(values: np.ndarray, dtype) -> np.ndarray:
    """Returns the nearest integers that a type holds."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
