"""Writes warm-up requests, which TensorFlow Serving runs when it loads a SavedModel.

The first call of a graph is slow. The requests are PredictionLog messages, which the
package tensorflow-serving-api defines; to avoid that dependency, this module encodes
the few fields that it needs itself.
"""

import os
from collections.abc import Iterable, Mapping

import tensorflow as tf
from google.protobuf.message import Message

FILE = "tf_serving_warmup_requests"
# Field numbers in prediction_log.proto, predict.proto and model.proto.
_PREDICT_LOG, _REQUEST = 6, 1
_MODEL_SPEC, _INPUTS = 1, 2
_NAME, _SIGNATURE_NAME = 1, 3
_KEY, _VALUE = 1, 2
_MODEL = b"deeplab"  # servers ignore it


def _encode_varint(number: int) -> bytes:
    """Encodes a number with seven bits per byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _encode_field(number: int, content: bytes) -> bytes:
    """Encodes a field whose content is a string, bytes or a message."""
    length_delimited = 2
    return (
        _encode_varint(number << 3 | length_delimited)
        + _encode_varint(len(content))
        + content
    )


def make_prediction_log(signature: str, inputs: Mapping[str, Message]) -> bytes:
    """Returns a PredictionLog that calls a signature with a TensorProto per input."""
    spec = _encode_field(_NAME, _MODEL) + _encode_field(
        _SIGNATURE_NAME, signature.encode()
    )
    request = _encode_field(_MODEL_SPEC, spec)
    for name, tensor in inputs.items():
        value = _encode_field(_VALUE, tensor.SerializeToString())
        request += _encode_field(_INPUTS, _encode_field(_KEY, name.encode()) + value)
    return _encode_field(_PREDICT_LOG, _encode_field(_REQUEST, request))


def write_warmup_requests(logs: Iterable[bytes], folder: str) -> None:
    """Writes PredictionLogs to `folder`, the `assets.extra` of a SavedModel."""
    with tf.io.TFRecordWriter(os.path.join(folder, FILE)) as writer:
        for log in logs:
            writer.write(log)
