"""Requests that TensorFlow Serving answers by itself before it takes others.

The first call of a graph is slow. A SavedModel brings requests along for it, records of
the message PredictionLog, which the package tensorflow-serving-api defines. Of its
messages so little is needed that they are written here, field by field.
"""

import os
from collections.abc import Iterable, Mapping

import tensorflow as tf
from google.protobuf.message import Message

FILE = "tf_serving_warmup_requests"
# Numbers of fields in prediction_log.proto, predict.proto and model.proto.
_PREDICT_LOG, _REQUEST = 6, 1
_MODEL_SPEC, _INPUTS = 1, 2
_NAME, _SIGNATURE_NAME = 1, 3
_KEY, _VALUE = 1, 2
_MODEL = b"deeplab"  # servers go by the place of the file


def _varint(number: int) -> bytes:
    """Returns a number as messages have it: seven bits a byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of a message that is a string, bytes or a message itself."""
    length_delimited = 2
    return _varint(number << 3 | length_delimited) + _varint(len(content)) + content


def prediction_log(signature: str, inputs: Mapping[str, Message]) -> bytes:
    """Returns a PredictionLog that calls a signature.

    Args:
        signature: Its name.
        inputs: A TensorProto for each of its inputs.
    """
    spec = _field(_NAME, _MODEL) + _field(_SIGNATURE_NAME, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for name, tensor in inputs.items():
        value = _field(_VALUE, tensor.SerializeToString())
        request += _field(_INPUTS, _field(_KEY, name.encode()) + value)
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def write_warmup_requests(logs: Iterable[bytes], folder: str) -> None:
    """Writes the requests into a folder, where TensorFlow Serving looks for them.

    Args:
        logs: Of `prediction_log`.
        folder: The `assets.extra` of a SavedModel.
    """
    with tf.io.TFRecordWriter(os.path.join(folder, FILE)) as writer:
        for log in logs:
            writer.write(log)
