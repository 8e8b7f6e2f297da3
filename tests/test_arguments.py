"""Public functions and classes refuse arguments of a wrong type in one line."""

import inspect
import pathlib
import typing

import keras
import numpy as np
import pytest

import deeplab_tf
from deeplab_tf import UserError

# Valid values of the arguments that have no default.
VALID = {
    "arrays": {},
    "class_names": ("a", "b"),
    "dataset": (),
    "handle": "hf://me/model",
    "image": np.zeros((9, 9, 3)),
    "images": np.zeros((1, 9, 9, 3)),
    "info": deeplab_tf.dataset_info("camvid"),
    "log_dir": "nowhere",
    "labels": np.zeros((9, 9), int),
    "license": "mit",
    "name": "toys",
    "name_path_or_url": "nowhere",
    "num_classes": 5,
    "path": "nowhere",
    "prefix": "nowhere",
    "size": (33, 33),
    "split": "val",
    "training": False,
}
CONFIGS = {
    "Trainer": deeplab_tf.TrainConfig(),
    "load_dataset": deeplab_tf.DataConfig(),
}
ARGUMENTS = [
    pytest.param(name, parameter, id=f"{name}-{parameter.name}")
    # Keras makes a DeepLab from symbolic tensors; users call build_model.
    for name in sorted({*deeplab_tf.__all__} - {"DeepLab", "UserError"})
    for parameter in inspect.signature(getattr(deeplab_tf, name)).parameters.values()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
]


def get_error_message(function, *args, **kwargs):
    """Returns the one-line message of the error about invalid arguments."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def wrong_values(parameter):
    """Returns values of types that an argument does not accept."""
    hints = typing.get_args(parameter.annotation) or (parameter.annotation,)
    texts = [] if {str, typing.Any} & {*hints} else ["nowhere", pathlib.Path("nowhere")]
    numbers = [] if {int, float, typing.Any} & {*hints} else [3]
    return [object(), *numbers, *texts, *([] if type(None) in hints else [None])]


@pytest.mark.parametrize(("name", "parameter"), ARGUMENTS)
def test_wrong_types_give_one_line_error(tiny_model, name, parameter):
    function = getattr(deeplab_tf, name)
    valid = VALID | {"config": CONFIGS.get(name, tiny_model.model_config)}
    valid["model"] = tiny_model
    required = {
        other.name: valid[other.name]
        for other in inspect.signature(function).parameters.values()
        if other.default is inspect.Parameter.empty
        and other.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for value in wrong_values(parameter):
        message = get_error_message(function, **required | {parameter.name: value})
        assert message.startswith(f"{parameter.name} "), message
        assert " must be " in message and "; received " in message, message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: deeplab_tf.build_model("mobilenet_v2"),
            "config must be a ModelConfig; received 'mobilenet_v2'; use "
            "ModelConfig(backbone='mobilenet_v2')",
        ),
        (
            lambda model: deeplab_tf.build_model(model.model_config, image_size=65),
            "image_size must be two integers, each at least 1 and at most 65536; "
            "received 65; use image_size=(65, 65)",
        ),
        (
            lambda model: deeplab_tf.build_model(model.model_config, (65, 65), 0),
            "batch_size must be at least 1; received 0",
        ),
        (
            lambda model: deeplab_tf.Trainer(model, {"momentum": 0.9}),
            "config must be a TrainConfig; received {'momentum': 0.9}; use "
            "TrainConfig(**config)",
        ),
        (
            lambda model: deeplab_tf.evaluate("logs", []),
            "model must be a keras.Model or an ExportedModel; received 'logs'; use "
            "from_pretrained('logs')",
        ),
        (
            lambda model: deeplab_tf.load_tf1_checkpoint(model, "logs", "logits"),
            "exclude must be strings; received 'logits'; use exclude=('logits',)",
        ),
        (
            lambda model: deeplab_tf.multiply_adds(model.model_config, (513, 513, 3)),
            "crop_size must be two integers, each at least 1 and at most 65536; "
            "received (513, 513, 3)",
        ),
        (
            lambda model: deeplab_tf.dataset_info("pascal_voc"),
            "there is no dataset 'pascal_voc'; similar: pascal_voc_seg, coco_voc; it "
            "must be one of pascal_voc_seg, cityscapes, camvid, ade20k, ade20k_150, "
            "coco_voc or have a dataset_info.json next to its records",
        ),
        (
            lambda model: deeplab_tf.save_tf1_checkpoint(
                keras.Sequential(name="other"), "logs"
            ),
            "model must be made by build_model or from_pretrained; received "
            "<Sequential name=other, built=False>",
        ),
        (
            lambda model: deeplab_tf.Trainer(
                model, deeplab_tf.TrainConfig()
            ).train_step(np.zeros((33, 49, 3)), np.zeros((33, 49))),
            "images must have the shape [batch, height, width, channels]; received "
            "[33, 49, 3]",
        ),
    ],
)
def test_message_names_the_argument_and_what_to_write(tiny_model, call, message):
    assert get_error_message(call, tiny_model) == message


def test_missing_and_unknown_arguments_raise_the_error_of_python():
    with pytest.raises(TypeError, match=r"^build_model\(\) missing 1 req.*'config'"):
        deeplab_tf.build_model()
    with pytest.raises(TypeError, match=r"build_model\(\) got an unexpected .*'size'"):
        deeplab_tf.build_model(deeplab_tf.ModelConfig(), size=(65, 65))


def test_paths_numpy_scalars_and_lists_are_converted(tmp_path):
    config = deeplab_tf.ModelConfig(depth_multiplier=0.1, num_classes=2)
    size = [np.int64(17), np.int32(33)]
    assert deeplab_tf.multiply_adds(config, size) == deeplab_tf.multiply_adds(
        config, (17, 33)
    )
    message = get_error_message(deeplab_tf.load_artefact, tmp_path / "no")
    assert message.startswith(f"{tmp_path}/no cannot be read as a SavedModel")
