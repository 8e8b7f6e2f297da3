"""Answers requests of the KServe V2 protocol (Open Inference Protocol).

It is independent of the server: `examples/serving/runtime.py` connects it to MLServer.
"""

import asyncio
import base64
import collections
import concurrent.futures
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import POSITIVE
from deeplab_tf.errors import UserError
from deeplab_tf.images.decoding import encode_image
from deeplab_tf.serving.artefact import Artefact
from deeplab_tf.serving.encoded import Bounds, decode_checked
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.signatures import (
    ENCODED_INPUT,
    ENCODED_OUTPUT,
    ERROR,
    INPUT,
    OUTPUT,
)

_CHANNELS, _MAX_VALUE = 3, 255
_WARMUP_SIDE = 65


class RequestError(UserError):
    """A request is invalid; the client must change it."""


class Tensor(NamedTuple):
    """A tensor of the protocol.

    `datatype` is a name such as "UINT8" or "BYTES", and `data` a flat list. In the
    description of a model, -1 in `shape` stands for any number, and `data` is empty.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: list


class LabelService:
    """Labels the images of requests with an exported model of any format.

    Inputs and outputs are those of the SavedModel's signatures: `image_bytes`, BYTES
    `[batch]`, gives `label_map_bytes` and `error`; `ImageTensor`, UINT8 `[batch,
    height, width, 3]`, gives `SemanticPredictions`, INT32. Bytes that arrive as text,
    as in JSON, are base64, and so are the label maps in their answer.

    Attributes:
        inputs: The accepted inputs, without data. A request has one of them.
        outputs: The outputs, without data.

    Args:
        path: The export; see `load_artefact`.
        max_pixels: Maximum pixels of an image, and of all images of one batch.
        max_images: Maximum number of encoded images in a request.
        threads: Maximum number of batches processed at once; each adds memory.
        max_batch_size: Maximum number of images in a batch. Images of one size that
            arrive within `max_batch_time` are processed together, which helps on a GPU.
            It has no effect on encoded images of a SavedModel, which labels them one
            at a time.
        max_batch_time: Seconds to wait for a full batch.

    Raises:
        UserError: if an argument is invalid, or the model does not label RGB images
            with 8 bits per channel.
    """

    inputs = (
        Tensor(ENCODED_INPUT, "BYTES", [-1], []),
        Tensor(INPUT, "UINT8", [-1, -1, -1, _CHANNELS], []),
    )
    outputs = (
        Tensor(ENCODED_OUTPUT, "BYTES", [-1], []),
        Tensor(ERROR, "BYTES", [-1], []),
        Tensor(OUTPUT, "INT32", [-1, -1, -1], []),
    )

    @check_arguments(
        max_pixels=POSITIVE,
        max_images=POSITIVE,
        threads=POSITIVE,
        max_batch_size=POSITIVE,
        max_batch_time=POSITIVE,
    )
    def __init__(
        self,
        path: str,
        max_pixels: int = 1 << 22,
        max_images: int = 64,
        threads: int = 2,
        max_batch_size: int = 1,
        max_batch_time: float = 0.002,
    ):
        self._model = load_artefact(path)
        _check_model(self._model, path)
        # The signature knows the export's own limits, and whether it resizes images.
        self._encoded = getattr(self._model, "encoded", None)
        self._max_pixels, self._max_images = max_pixels, max_images
        self._decode = _compile_decoder(Bounds(max_pixels))
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._batcher = _Batcher(
            self._model.labels, self._pool, max_pixels, max_batch_size, max_batch_time
        )
        # Waiting images take memory.
        self._in_progress = asyncio.Semaphore(threads * max_batch_size)
        self._model.labels(
            np.zeros([1, _WARMUP_SIDE, _WARMUP_SIDE, _CHANNELS], np.uint8)
        )

    def close(self) -> None:
        """Waits for the batches in progress; later requests fail."""
        self._pool.shutdown()

    async def infer(
        self, inputs: Sequence[Tensor], outputs: Collection[str] = ()
    ) -> list[Tensor]:
        """Labels the images of a request.

        An image that cannot be decoded or is too large gives an empty label map and a
        reason in `error`.

        Args:
            inputs: The input.
            outputs: Names of the outputs to return; empty for all.

        Raises:
            RequestError: if the input has a wrong name, type, shape or length, or an
                output does not exist.
        """
        tensor = _find_input(inputs)
        is_encoded = tensor.name == ENCODED_INPUT
        names = (ENCODED_OUTPUT, ERROR) if is_encoded else (OUTPUT,)
        for name in outputs:
            if name not in names:
                raise RequestError(
                    f"{tensor.name} has no output {name!r}; it has {', '.join(names)}"
                )
        if is_encoded:
            files, is_text = await self._run(_read_files, tensor, self._max_images)
            found = await self._label_files(files, is_text)
        else:
            found = [await self._label_images(tensor)]
        return [output for output in found if not outputs or output.name in outputs]

    async def _run(self, function: Callable, *arguments: Any) -> Any:
        """Runs a function in a thread, so that the server keeps answering."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, function, *arguments)

    async def _label_images(self, tensor: Tensor) -> Tensor:
        """Returns the labels of pixels."""
        async with self._in_progress:
            images = await self._run(_read_images, tensor, self._max_pixels)
            labels = await self._batcher.label(images)
            return await self._run(_make_labels, labels)

    async def _label_files(self, files: list[bytes], is_text: bool) -> list[Tensor]:
        """Returns the label maps of encoded images as PNGs, and the errors."""
        found = [await self._label_file(file) for file in files]
        maps, errors = ([pair[i] for pair in found] for i in (0, 1))
        return [
            Tensor(
                ENCODED_OUTPUT,
                "BYTES",
                [len(files)],
                [base64.b64encode(one).decode() for one in maps] if is_text else maps,
            ),
            Tensor(
                ERROR,
                "BYTES",
                [len(files)],
                [one.decode() for one in errors] if is_text else errors,
            ),
        ]

    async def _label_file(self, file: bytes) -> tuple[bytes, bytes]:
        """Returns the label map of an encoded image, and an error or `b""`."""
        async with self._in_progress:
            image = await self._run(self._decode, file)
            if image is None:
                return b"", Bounds(self._max_pixels).message.encode()
            if self._encoded is not None:
                return await self._run(_run_encoded, self._encoded, file)
            try:
                labels = await self._batcher.label(image[None])
            except UserError as error:  # for example too large for a TFLite file
                return b"", str(error).encode()
            return await self._run(_encode_labels, labels[0], self._model), b""


def _check_model(model: Artefact, path: str) -> None:
    """Raises UserError unless a model labels RGB images with 8 bits per channel."""
    is_deep = model.info is not None and model.info.max_value != _MAX_VALUE
    if is_deep or model.channels not in (_CHANNELS, None):
        raise UserError(
            f"{path} does not label RGB images with 8 bits per channel, the only ones "
            "that are decoded"
        )


def _run_encoded(signature: Callable, file: bytes) -> tuple[bytes, bytes]:
    """Returns the label map and the error that a SavedModel gives for an image."""
    found = signature(**{ENCODED_INPUT: tf.constant([file])})
    return found[ENCODED_OUTPUT].numpy()[0], found[ERROR].numpy()[0]


def _compile_decoder(bounds: Bounds) -> Callable[[bytes], np.ndarray | None]:
    """Returns a function that decodes an image, to None if it cannot."""
    decode = tf.function(
        lambda file: decode_checked(file, bounds),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    ).get_concrete_function()

    def try_decode(file: bytes) -> np.ndarray | None:
        try:
            return decode(tf.constant(file)).numpy()
        except tf.errors.InvalidArgumentError:
            return None

    return try_decode


def _encode_labels(labels: np.ndarray, model: Artefact) -> bytes:
    is_small = model.num_classes is None or model.num_classes <= 256
    return encode_image(labels[..., None].astype(np.uint8 if is_small else np.uint16))


def _make_labels(labels: np.ndarray) -> Tensor:
    return Tensor(OUTPUT, "INT32", labels.shape, labels.ravel().tolist())


class _Batcher:
    """Processes images of one size together, from requests that arrive together."""

    def __init__(
        self,
        label: Callable,
        pool: concurrent.futures.Executor,
        max_pixels: int,
        max_size: int,
        max_time: float,
    ):
        self._label, self._pool = label, pool
        self._max_pixels, self._max_size = max_pixels, max_size
        self._max_time = max_time
        self._waiting: dict = collections.defaultdict(list)

    async def label(self, images: np.ndarray) -> np.ndarray:
        """Returns the labels of images `[batch, height, width, channels]`."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        size = images.shape[1:3]
        room = min(self._max_size, self._max_pixels // math.prod(size))
        if self._count(size) + len(images) > room:
            self._submit(size)
        self._waiting[size].append((images, future))
        if self._count(size) >= room:
            self._submit(size)
        elif len(self._waiting[size]) == 1:
            loop.call_later(self._max_time, self._submit, size)
        return await future

    def _count(self, size: tuple[int, int]) -> int:
        return sum(len(images) for images, _ in self._waiting[size])

    def _submit(self, size: tuple[int, int]) -> None:
        """Submits the waiting images of a size, except those of cancelled requests."""
        waiting = self._waiting.pop(size, [])
        batch = [one for one in waiting if not one[1].cancelled()]
        if not batch:
            return
        images = np.concatenate([images for images, _ in batch])
        loop = asyncio.get_running_loop()
        try:
            done = loop.run_in_executor(self._pool, self._label, images)
        except RuntimeError as error:  # the pool was closed
            for _, future in batch:
                future.set_exception(error)
            return
        done.add_done_callback(functools.partial(_distribute_labels, batch))


def _distribute_labels(batch: list[tuple[np.ndarray, asyncio.Future]], done) -> None:
    """Passes the labels of a batch, or its error, to its requests."""
    ends = np.cumsum([len(images) for images, _ in batch])
    for (images, future), end in zip(batch, ends, strict=True):
        if future.cancelled():
            continue
        if done.exception() is not None:
            future.set_exception(done.exception())
        else:
            future.set_result(done.result()[end - len(images) : end])


def _find_input(inputs: Sequence[Tensor]) -> Tensor:
    names = [one.name for one in inputs]
    if names not in ([ENCODED_INPUT], [INPUT]):
        raise RequestError(
            f"a request has one input, {ENCODED_INPUT} or {INPUT}; received {names}"
        )
    return inputs[0]


def _read_data(tensor: Tensor, datatype: str, ranks: Collection[int]) -> list:
    """Returns the elements of an input; checks its type and shape."""
    if tensor.datatype != datatype:
        raise RequestError(
            f"{tensor.name} must be {datatype}; received {tensor.datatype}"
        )
    if len(tensor.shape) not in ranks or min(tensor.shape) < 1:
        raise RequestError(f"{tensor.name} has the invalid shape {tensor.shape}")
    if not isinstance(tensor.data, list):
        raise RequestError(f"the data of {tensor.name} must be a list")
    return tensor.data


def _check_length(tensor: Tensor, length: int) -> None:
    """Raises RequestError unless the number of elements agrees with the shape."""
    if length != math.prod(tensor.shape):
        raise RequestError(
            f"{tensor.name} has {length} elements; its shape {tensor.shape} needs "
            f"{math.prod(tensor.shape)}"
        )


def _read_files(tensor: Tensor, max_images: int) -> tuple[list[bytes], bool]:
    """Returns encoded images, and whether they were base64."""
    data = _read_data(tensor, "BYTES", (1, 2))
    _check_length(tensor, len(data))
    if len(data) > max_images:
        raise RequestError(
            f"{tensor.name} has {len(data)} images; a request may have {max_images}"
        )
    if all(isinstance(one, bytes) for one in data):
        return data, False
    try:
        return [base64.b64decode(one, validate=True) for one in data], True
    except (TypeError, ValueError) as error:
        raise RequestError(f"{tensor.name} must be base64: {error}") from error


def _read_images(tensor: Tensor, max_pixels: int) -> np.ndarray:
    """Returns images, uint8 `[batch, height, width, 3]`, from flat or nested data."""
    data, shape = _read_data(tensor, "UINT8", (4,)), tensor.shape
    if shape[-1] != _CHANNELS or math.prod(shape[:3]) > max_pixels:
        raise RequestError(
            f"{tensor.name} must have {_CHANNELS} channels and at most {max_pixels} "
            f"pixels; received the shape {shape}"
        )
    try:
        values = np.asarray(data)
    except ValueError as error:
        raise RequestError(f"{tensor.name} has data of uneven lengths") from error
    _check_length(tensor, values.size)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > _MAX_VALUE:
        raise RequestError(f"{tensor.name} must have integers in 0..{_MAX_VALUE}")
    return values.reshape(shape).astype(np.uint8)
