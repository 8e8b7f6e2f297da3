"""Requests of the KServe V2 protocol; an invalid one affects no other request."""

import asyncio
import base64
import io
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from hostile_images import HOSTILE_IMAGES, JPEG, PNG, encode_image, noise
from PIL import Image

from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.serving.kserve import LabelService, RequestError, Tensor
from deeplab_tf.serving.saved_model import export_saved_model


@pytest.fixture(scope="module")
def exports(tiny_model, tiny_export, tmp_path_factory):
    """A SavedModel, which decodes images itself, and a format that does not."""
    keras_file = tmp_path_factory.mktemp("kserve") / "model.keras"
    tiny_model.save(keras_file)
    return {"SavedModel": tiny_export, "Keras": str(keras_file)}


@pytest.fixture(scope="module", params=["SavedModel", "Keras"])
def service(request, exports):
    with_limit = LabelService(exports[request.param], max_pixels=3000)
    # It would change results of training in the same process.
    assert "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS" not in os.environ
    yield with_limit
    with_limit.close()


def infer(service, *inputs, outputs=()):
    return asyncio.run(service.infer(inputs, outputs))


def make_files(files):
    return Tensor("image_bytes", "BYTES", [len(files)], files)


def make_images(pixels):
    return Tensor("ImageTensor", "UINT8", list(pixels.shape), pixels.ravel().tolist())


def expected_labels(model, file):
    return predict_labels(model, tf.io.decode_image(file, channels=3)[None])[0]


def read_png(content):
    return np.array(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("is_text", [False, True])
def test_files_of_any_size_are_labelled(service, tiny_model, is_text):
    files = [JPEG, PNG, encode_image(noise(1, 1, 3)), encode_image(noise(9, 5))]
    sent = [base64.b64encode(one).decode() for one in files] if is_text else files
    maps, errors = infer(service, make_files(sent))
    assert (maps.name, maps.datatype, maps.shape) == ("label_map_bytes", "BYTES", [4])
    assert errors[:3] == ("error", "BYTES", [4])
    assert errors.data == 4 * ["" if is_text else b""]
    for file, label_map in zip(files, maps.data, strict=True):
        png = base64.b64decode(label_map) if is_text else label_map
        np.testing.assert_array_equal(read_png(png), expected_labels(tiny_model, file))


def test_pixels_are_labelled(service, tiny_model):
    pixels = noise(2, 11, 13, 3)
    [labels] = infer(service, make_images(pixels))
    assert labels[:3] == ("SemanticPredictions", "INT32", (2, 11, 13))
    found = np.array(labels.data).reshape(labels.shape)
    np.testing.assert_array_equal(found, predict_labels(tiny_model, pixels))
    nested = make_images(pixels)._replace(data=pixels.tolist())
    assert infer(service, nested) == [labels]


def test_unreadable_file_gives_an_error_for_itself_alone(service, tiny_model):
    hostile = list(HOSTILE_IMAGES.values())
    maps, errors = infer(service, make_files([JPEG, *hostile, PNG]))
    assert maps.data[1:-1] == len(hostile) * [b""]
    assert all(b"at most 3000 pixels" in one for one in errors.data[1:-1])
    assert errors.data[0] == errors.data[-1] == b""
    for file, label_map in ((JPEG, maps.data[0]), (PNG, maps.data[-1])):
        np.testing.assert_array_equal(
            read_png(label_map), expected_labels(tiny_model, file)
        )


def test_images_above_the_limit_are_refused(service):
    at_limit, above = noise(50, 60, 3), noise(50, 61, 3)
    _, errors = infer(service, make_files([encode_image(x) for x in (at_limit, above)]))
    assert errors.data[0] == b"" and b"at most 3000 pixels" in errors.data[1]
    assert infer(service, make_images(at_limit[None]))
    for images in (above[None], noise(2, 50, 31, 3)):
        with pytest.raises(UserError, match="at most 3000 pixels"):
            infer(service, make_images(images))


def test_only_requested_outputs_are_returned(service):
    [errors] = infer(service, make_files([b"no image"]), outputs=["error"])
    assert errors.name == "error"
    with pytest.raises(UserError, match="no output 'labels'; it has label_map_bytes"):
        infer(service, make_files([JPEG]), outputs=["labels"])


FILES, IMAGES = make_files([JPEG]), make_images(noise(1, 4, 5, 3))
INVALID = [
    ([], r"one input, image_bytes or ImageTensor; received \[\]"),
    ([FILES, IMAGES], "received .*image_bytes.*ImageTensor"),
    ([FILES._replace(name="image")], r"received \['image'\]"),
    ([FILES._replace(datatype="FP32")], "image_bytes must be BYTES; received FP32"),
    ([IMAGES._replace(datatype="FP32")], "ImageTensor must be UINT8; received FP32"),
    ([FILES._replace(shape=[])], r"the invalid shape \[\]"),
    ([FILES._replace(shape=[0], data=[])], r"the invalid shape \[0\]"),
    ([FILES._replace(shape=[-1])], r"the invalid shape \[-1\]"),
    ([FILES._replace(shape=[1, 1, 1])], r"the invalid shape \[1, 1, 1\]"),
    ([IMAGES._replace(shape=[4, 5, 3])], r"the invalid shape \[4, 5, 3\]"),
    ([FILES._replace(shape=[2])], r"has 1 elements; its shape \[2\] needs 2"),
    ([FILES._replace(data=[JPEG, JPEG])], r"has 2 elements; its shape \[1\] needs 1"),
    ([IMAGES._replace(shape=[1, 4, 4, 3])], "has 60 elements; .* needs 48"),
    ([IMAGES._replace(shape=[1, 5, 6, 2])], "must have 3 channels"),
    ([IMAGES._replace(shape=[1, 1 << 40, 1 << 40, 3])], "at most 3000 pixels"),
    ([make_files(65 * [JPEG])], "has 65 images; a request may have 64"),
    ([FILES._replace(data="aGk=")], "data of image_bytes must be a list"),
    ([FILES._replace(data=["no base64!"])], "image_bytes must be base64"),
    ([FILES._replace(data=[1])], "image_bytes must be base64"),
    ([IMAGES._replace(data=60 * [256])], r"integers in 0\.\.255"),
    ([IMAGES._replace(data=60 * [-1])], r"integers in 0\.\.255"),
    ([IMAGES._replace(data=60 * [0.5])], r"integers in 0\.\.255"),
    ([IMAGES._replace(data=60 * [None])], r"integers in 0\.\.255"),
    ([IMAGES._replace(data=[[1], [1, 2]])], "data of uneven lengths"),
]


@pytest.mark.parametrize("inputs, message", INVALID)
def test_invalid_request_is_refused(service, inputs, message):
    with pytest.raises(RequestError, match=message):
        infer(service, *inputs)


def label_at_once(service, requests):
    """Sends requests at the same time; returns the sizes of the batches as well."""
    batches, label = [], service._batcher._label

    def spy(images):
        batches.append(len(images))
        return label(images)

    async def send():
        service._batcher._label = spy
        answers = (service.infer([one]) for one in requests)
        return await asyncio.gather(*answers, return_exceptions=True)

    return asyncio.run(send()), sorted(batches)


@pytest.mark.parametrize("kind", ["SavedModel", "Keras"])
def test_images_of_one_size_are_batched(exports, tiny_model, kind):
    service = LabelService(
        exports[kind], max_pixels=600, max_batch_size=3, max_batch_time=0.2
    )
    images = [noise(1, 9, 10 + i % 2, 3) + np.uint8(i) for i in range(9)]
    requests = [make_images(one) for one in images]
    requests += [make_images(noise(4, 9, 10, 3)), make_images(noise(1, 20, 20, 3))]
    requests += [make_images(noise(1, 20, 20, 3)), make_files([b"no image"])]
    requests += [make_images(images[0])._replace(shape=[2, 9, 10, 3])]
    answers, batches = label_at_once(service, requests)
    # Five and four images of two sizes, one request that is a batch of its own, and
    # two images that together have too many pixels.
    assert batches == [1, 1, 1, 2, 3, 3, 4]
    for image, [labels] in zip(images, answers, strict=False):
        np.testing.assert_array_equal(
            np.array(labels.data).reshape(labels.shape),
            predict_labels(tiny_model, image),
        )
    assert answers[-2][1].data[0].startswith(b"the image is not")
    assert "its shape [2, 9, 10, 3] needs 540" in str(answers[-1])
    service.close()


def test_files_of_one_size_are_batched(exports, tiny_model):
    service = LabelService(exports["Keras"], max_batch_size=4, max_batch_time=0.2)
    files = [encode_image(noise(9, 10, 3) + np.uint8(i)) for i in range(4)]
    answers, batches = label_at_once(service, [make_files([one]) for one in files])
    assert batches == [4]
    for file, (maps, _) in zip(files, answers, strict=True):
        np.testing.assert_array_equal(
            read_png(maps.data[0]), expected_labels(tiny_model, file)
        )
    service.close()


def test_error_and_closed_request_in_a_batch(exports, tiny_model):
    service = LabelService(exports["SavedModel"], max_batch_size=3, max_batch_time=0.2)
    image = noise(1, 9, 10, 3)

    async def close_one():
        tasks = [asyncio.create_task(service.infer([make_images(image)])) for _ in "ab"]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    closed, [labels] = asyncio.run(close_one())
    assert isinstance(closed, asyncio.CancelledError)
    assert labels.data == predict_labels(tiny_model, image).ravel().tolist()
    service._batcher._label = lambda images: 1 / 0
    answers, _ = label_at_once(service, 2 * [make_images(image)])
    assert [type(one) for one in answers] == 2 * [ZeroDivisionError]


def test_request_that_waits_while_the_service_closes_fails(exports):
    service = LabelService(exports["Keras"], max_batch_size=3, max_batch_time=0.1)
    waiting = make_images(noise(1, 9, 10, 3))

    async def close():
        task = asyncio.create_task(service.infer([waiting]))
        await asyncio.sleep(0.05)
        service.close()
        await asyncio.wait_for(task, timeout=10)

    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(close())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threads": 0}, "threads"),
        ({"max_pixels": -1}, "max_pixels"),
        ({"max_batch_size": 1.5}, "max_batch_size"),
        ({"max_batch_time": "2 ms"}, "max_batch_time"),
    ],
)
def test_invalid_options_are_refused(exports, options, message):
    with pytest.raises(UserError, match=message):
        LabelService(exports["SavedModel"], **options)


def test_model_for_other_images_is_refused(tmp_path):
    image = keras.Input((None, None, 5), name="image")
    model = keras.Model(image, keras.layers.Identity(name="logits")(image))
    model.model_config = ModelConfig(num_classes=5, channels=5)
    export_saved_model(model, str(tmp_path / "five"))
    with pytest.raises(UserError, match="RGB images with 8 bits per channel"):
        LabelService(str(tmp_path / "five"))
