"""Warm-up requests follow the protobuf messages of TensorFlow Serving."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from deeplab_tf.serving import warmup

FIELD = descriptor_pb2.FieldDescriptorProto
KINDS = {"string": FIELD.TYPE_STRING, "bytes": FIELD.TYPE_BYTES}
# From prediction_log.proto, predict.proto and model.proto of TensorFlow Serving. A map
# is a list of entries, and a nested message is bytes on the wire.
MESSAGES = {
    "ModelSpec": {"name": (1, "string"), "signature_name": (3, "string")},
    "InputsEntry": {"key": (1, "string"), "value": (2, "bytes")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "InputsEntry")},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
}


@pytest.fixture(scope="module")
def prediction_log():
    """The message class PredictionLog."""
    file = descriptor_pb2.FileDescriptorProto(
        name="small.proto", package="small", syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_OPTIONAL
            if field == "inputs":
                added.label = added.LABEL_REPEATED
            added.type = KINDS.get(kind, FIELD.TYPE_MESSAGE)
            if kind in MESSAGES:
                added.type_name = f".small.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    name = "small.PredictionLog"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def read_requests(folder, prediction_log):
    """Yields signature and inputs of the requests in a folder."""
    for record in tf.data.TFRecordDataset(f"{folder}/tf_serving_warmup_requests"):
        request = prediction_log.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "deeplab"
        inputs = {}
        for entry in request.inputs:
            proto = tf.make_tensor_proto(0)
            proto.ParseFromString(entry.value)
            inputs[entry.key] = tf.make_ndarray(proto)
        yield request.model_spec.signature_name, inputs


def test_requests_round_trip(prediction_log):
    # More than 127 and more than 16,383 bytes: lengths of two and of three bytes.
    inputs = {
        "image": np.random.RandomState(0).randint(0, 256, (1, 90, 80, 3), np.uint8),
        "name": np.array([b"n" * 200], object),
    }
    protos = {name: tf.make_tensor_proto(array) for name, array in inputs.items()}
    log = warmup.make_prediction_log("serve", protos)
    warmup.write_warmup_requests(
        [log, warmup.make_prediction_log("x", {})], "ram://warm"
    )
    (name, read_inputs), other = read_requests("ram://warm", prediction_log)
    assert (name, other) == ("serve", ("x", {}))
    assert set(read_inputs) == set(inputs)
    for key, array in inputs.items():
        np.testing.assert_array_equal(read_inputs[key], array)


def test_export_answers_its_warmup_requests(tiny_export, prediction_log):
    loaded = tf.saved_model.load(tiny_export)
    requests = dict(read_requests(f"{tiny_export}/assets.extra", prediction_log))
    assert set(requests) == set(loaded.signatures)
    assert requests["serving_default"]["ImageTensor"].shape == (1, 513, 513, 3)
    for name, inputs in requests.items():
        tensors = {key: tf.constant(array) for key, array in inputs.items()}
        outputs = loaded.signatures[name](**tensors)
        assert all(len(array) == 1 for array in outputs.values())
        assert not any(outputs.get("error", [b""]))
