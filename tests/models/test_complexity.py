"""Multiply-adds compared with published figures and exact counts."""

import concurrent.futures
import re
import subprocess
import sys

import keras
import pytest
from program_runs import assert_refused, run

from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models.complexity import format_table, multiply_adds
from deeplab_tf.presets import PRESETS

# 101.28 contradicts the rest of its own table: docs/complexity.md.
ERRATA = {
    "deeplabv3plus_table3_train16_eval16_decoder",
    "deeplabv3plus_table3_train32_eval16_decoder",
}
PAPER = [
    n for n in PRESETS if n.startswith(("deeplabv3plus_table3", "deeplabv3plus_table5"))
]
VOC_ZOO = [n for n in PRESETS if re.match(r"(mobilenetv2|xception65)_.*_voc", n)]
CITYSCAPES_ZOO = [
    "mobilenetv2_coco_cityscapes_trainfine",
    "mobilenetv2_coco_cityscapes_trainfine_os8_ms_flip",
    "xception65_cityscapes_trainfine",
    "xception65_cityscapes_trainfine_os8_ms_flip",
    "xception71_dpc_cityscapes_trainfine",
]


def billions(name, convention):
    preset = PRESETS[name]
    protocol = preset.evaluation
    options = (protocol.eval_scales, protocol.add_flipped_images)
    size = protocol.eval_crop_size
    return multiply_adds(preset.eval_model, size, convention, *options) / 1e9


def test_papers_report_28_multiply_add_counts():
    # Models that differ in pre-training alone have the same cost.
    assert len({PRESETS[name].published.multiply_adds for name in PAPER}) == 28


# Each multi-scale figure needs six networks.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.count("_ms")) for n in PAPER],
)
def test_profiler_counts_equal_published_figures(name):
    published = PRESETS[name].published.multiply_adds
    tolerance = 0.016 if name in ERRATA else 1.7e-4
    assert billions(name, "profiler") == pytest.approx(published, rel=tolerance)


def test_erratum_follows_from_other_rows_of_its_table():
    for name in ERRATA:
        assert billions(name, "profiler") == pytest.approx(102.78, abs=0.005)
    # One scale of the multi-scale row: 898.69 minus the other five.
    multi_scale = PRESETS["deeplabv3plus_table3_train16_eval16_decoder_ms"]
    rest = multiply_adds(
        multi_scale.eval_model, (513, 513), "tf1", (0.5, 0.75, 1.25, 1.5, 1.75)
    )
    assert 898.69 - rest / 1e9 == pytest.approx(102.78, abs=0.5)


@pytest.mark.parametrize("name", [*VOC_ZOO, *CITYSCAPES_ZOO])
def test_profiler_counts_equal_zoo_figures(name):
    published = PRESETS[name].published.multiply_adds
    # "0.88" and "2.84" are printed to 1%; see the reference of the DeepLab zoo.
    assert billions(name, "profiler") == pytest.approx(published, rel=5e-4, abs=0.02)


# Billions at 513 x 513 with 21 classes and image-level features: without a decoder,
# with a dense one, and with a separable one and ASPP; output stride 32, 16, 8.
EXACT = {
    "resnet_v1_50_beta": (
        *((30.78, 52.54, 29.92), (55.43, 77.19, 44.54)),
        (172.23, 193.97, 122.04),
    ),
    "resnet_v1_101_beta": (
        *((51.41, 73.17, 50.55), (76.05, 97.81, 65.17)),
        (252.25, 273.99, 202.06),
    ),
    "resnet_v1_101": (
        *((44.27, 66.03, 43.41), (68.91, 90.67, 58.03)),
        (245.11, 266.86, 194.93),
    ),
    "xception_41": (
        *((31.75, 53.52, 30.89), (50.90, 72.66, 40.01)),
        (172.64, 194.38, 122.45),
    ),
    "xception_65": (
        *((45.78, 67.54, 44.92), (64.92, 86.68, 54.04)),
        (227.04, 248.78, 176.85),
    ),
    "xception_71": (
        *((57.81, 79.57, 56.95), (76.95, 98.71, 66.07)),
        (240.15, 261.89, 189.96),
    ),
}


def models(backbone, output_stride):
    """Yields the three models of a row of `EXACT`."""
    for decoder, separable in (((), False), ((4,), False), ((4,), True)):
        yield ModelConfig(
            backbone,
            output_stride=output_stride,
            context=ContextConfig(separable=separable),
            decoder=DecoderConfig(decoder, separable=separable),
        )


QUICK = ("resnet_v1_101_beta", "xception_65")


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(b, marks=[pytest.mark.slow] * (b not in QUICK)) for b in EXACT],
)
def test_exact_multiply_adds_match_known_counts(backbone):
    counts = tuple(
        tuple(round(multiply_adds(m) / 1e9, 2) for m in models(backbone, stride))
        for stride in (32, 16, 8)
    )
    assert counts == EXACT[backbone]


def test_multiply_adds_of_model_parts_match_hand_computed_values():
    plain, dense, separable = (multiply_adds(m) for m in models("xception_65", 16))
    # 129 x 129 x (256 x 48 + 9 x 304 x 256 + 9 x 256 x 256); the logits move from
    # 33 x 33 to 129 x 129 cells.
    logits = (129 * 129 - 33 * 33) * 256 * 21
    decoder = 129 * 129 * (256 * 48 + 9 * 304 * 256 + 9 * 256 * 256)
    assert decoder == 21_675_368_448
    assert dense - plain == decoder + logits
    assert round(separable / 1e9, 3) == 54.035
    beta, root = (
        multiply_adds(next(models(f"resnet_v1_101{b}", 32))) for b in ("_beta", "")
    )
    assert round((beta - root) / 1e9, 3) == 7.138


def test_multi_grid_adds_operations_only_in_tf1():
    plain = ModelConfig("resnet_v1_50_beta")
    grid = ModelConfig("resnet_v1_50_beta", multi_grid=(1, 2, 4))
    assert multiply_adds(plain) == multiply_adds(grid)
    # block4 runs at rates 2, 4, 8 instead of 2, 2, 2 on 33 x 33 cells, which TF1
    # pads to 34, 36 and 40: its 3x3 convolutions are 512 to 512.
    cells = (34**2 + 36**2 + 40**2) - 3 * 34**2
    more = multiply_adds(grid, convention="tf1") - multiply_adds(
        plain, convention="tf1"
    )
    assert more == 9 * 512 * 512 * cells


def test_scales_add_up_and_flipping_doubles_cost():
    config = ModelConfig(depth_multiplier=0.1)
    sizes = ((33, 49), (65, 97))
    single = [multiply_adds(config, size) for size in sizes]
    both = multiply_adds(config, (65, 97), scales=(0.5, 1.0))
    assert both == sum(single)
    assert multiply_adds(config, (65, 97), scales=(0.5, 1.0), flip=True) == 2 * both


@pytest.mark.parametrize(
    ("config", "convention", "message"),
    [
        (ModelConfig(), "flops", "exact, tf1 or profiler; received 'flops'"),
        (ModelConfig(image_pyramid=(0.5, 1.0)), "exact", "image_pyramid"),
    ],
)
def test_unsupported_model_or_convention_is_refused(config, convention, message):
    with pytest.raises(UserError, match=message):
        multiply_adds(config, convention=convention)


@pytest.mark.slow
def test_program_prints_published_figures():
    command = [sys.executable, "-m", "deeplab_tf.models.complexity"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    published = [p for p in PRESETS.values() if p.published.multiply_adds]
    assert [line.split()[0] for line in lines[1:]] == [p.name for p in published]
    assert printed == format_table() + "\n"


def test_program_has_help_and_refuses_flags():
    name = "deeplab_tf.programs.complexity"
    text = run(name, "--help")
    assert text.startswith("Prints the Multiply-Adds columns") and "flag=" not in text
    assert_refused("^complexity.py: there is no flag --scales; ", name, "--scales=1")


def test_counting_leaves_no_uninitialised_variables(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a variable of a counted model was initialised")

    def count_in_scope():
        # A size that is not cached yet.
        multiply_adds(ModelConfig("mobilenet_v2", depth_multiplier=0.35), (43, 47))
        monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", refuse)
        with keras.StatelessScope():
            pass

    # A new thread has no uninitialised variables of other tests.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(count_in_scope).result()
