"""MobileNetV2: widths, exact parameter counts, any image size."""

from math import prod

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.config import ContextConfig, ModelConfig
from deeplab_tf.models.backbones.mobilenet import make_divisible
from deeplab_tf.models.complexity import build_uninitialized
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables


@pytest.mark.parametrize(
    ("channels", "divisor", "expected"),
    [
        (32, 8, 32),
        (24 * 0.5, 1, 12),  # the zoo's dm 0.5
        (24 * 0.5, 8, 16),  # slim's: (12 + 4) // 8 * 8
        (32 * 0.35, 8, 16),  # 11.2 -> 8 loses 29%, so 16
        (24 * 0.35, 8, 8),  # 8.4 -> 8 loses 5%
        (16 * 0.35, 1, 6),  # 5.6
        (19, 8, 24),  # 16 loses 16%
        (20, 8, 24),  # a half rounds up
        (16 * 0.05, 8, 8),  # never less than the divisor
        (16 * 0.02, 1, 1),
    ],
)
def test_make_divisible_returns_expected_multiples(channels, divisor, expected):
    assert make_divisible(channels, divisor) == expected


def shapes_of(flags):
    config = ModelConfig.from_official_flags(flags)
    model = build_uninitialized(lambda: build_model(config))
    return model, {name: v.shape for name, v in official_variables(model).items()}


@pytest.mark.parametrize(
    ("flags", "count", "trainable", "total"),
    [
        ({}, 272, 2_113_557, 2_146_645),
        ({"depth_multiplier": 0.5}, 272, 697_013, 714_325),
        (
            {"num_classes": 151, "decoder_output_stride": 4},
            297,
            2_304_519,
            2_339_847,
        ),
    ],
)
def test_zoo_models_have_known_parameter_counts(flags, count, trainable, total):
    model, shapes = shapes_of(flags)
    assert len(shapes) == count
    assert sum(map(prod, shapes.values())) == total
    assert sum(prod(v.shape) for v in model.trainable_variables) == trainable


WIDTHS = ("Conv", *("expanded_conv" + i for i in ("", "_1", "_3", "_6", "_10", "_13")))


@pytest.mark.parametrize(
    ("flags", "widths"),
    [
        ({"depth_multiplier": 0.5}, (16, 8, 12, 16, 32, 48, 80, 160)),
        # slim's own ImageNet checkpoints: 24 * 0.5 = 12 becomes 16.
        (
            {"depth_multiplier": 0.5, "divisible_by": 8},
            (16, 8, 16, 16, 32, 48, 80, 160),
        ),
        ({"depth_multiplier": 0.7}, (22, 11, 17, 22, 45, 67, 112, 224)),
        (
            {"depth_multiplier": 1.4, "divisible_by": 8},
            (48, 24, 32, 48, 88, 136, 224, 448),
        ),
    ],
)
def test_widths_follow_depth_multiplier_and_divisor(flags, widths):
    _, shapes = shapes_of(flags)
    found = [shapes["MobilenetV2/Conv/weights"][-1]]
    for scope in (*WIDTHS[1:], "expanded_conv_16"):
        found.append(shapes[f"MobilenetV2/{scope}/project/weights"][-1])
    assert tuple(found) == widths


def test_inner_widths_are_always_multiples_of_8():
    _, shapes = shapes_of({"depth_multiplier": 0.35})
    # 6 * 6 = 36 -> 40; 6 * 8 = 48; 6 * 11 = 66 -> 64, which loses only 3%.
    blocks = ("expanded_conv_1", "expanded_conv_2", "expanded_conv_4")
    inner = [shapes[f"MobilenetV2/{block}/expand/weights"] for block in blocks]
    assert inner == [(1, 1, 6, 40), (1, 1, 8, 48), (1, 1, 11, 64)]


@pytest.fixture(scope="module")
def narrow_model():
    context = ContextConfig(rates=(2, 3), filters=16)
    return build_model(
        ModelConfig(depth_multiplier=0.1, num_classes=2, context=context)
    )


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (16, 17), (31, 64), (33, 48), (70, 69)]
)
def test_any_image_size_is_accepted(narrow_model, size):
    image = np.random.RandomState(0).uniform(0, 255, (2, *size, 3)).astype("float32")
    logits = narrow_model(image)
    assert logits.shape == (2, *size, 2)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("num_classes", "output_stride", "cells"),
    [(1, 8, (9, 13)), (3, 32, (3, 4)), (255, 16, (5, 7))],
)
def test_output_shape_follows_classes_and_output_stride(
    num_classes, output_stride, cells
):
    config = ModelConfig.from_official_flags(
        {
            "num_classes": num_classes,
            "output_stride": output_stride,
            "depth_multiplier": 0.1,
        }
    )
    model = build_model(config, image_size=(65, 97))
    assert model.get_layer("logits").output.shape == (None, *cells, num_classes)
    assert model(tf.zeros((1, 65, 97, 3))).shape == (1, 65, 97, num_classes)
