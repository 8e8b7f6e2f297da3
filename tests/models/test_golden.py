"""Parity of the networks with golden outputs of the official graph."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER, GoldenCase, value, zero_kernels

from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.config import ModelConfig
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.deeplab import build_model

# Cases with training settings are tested in training/test_trainer.py.
CASES = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "preprocess")


# The cases of one backbone follow each other and share most of their weights.
_value = functools.lru_cache(maxsize=700)(value)


def build_golden_model(case, **sizes):
    with zero_kernels():
        model = build_model(ModelConfig.from_official_flags(case.flags), **sizes)
    weights = {n: _value(n, tuple(s)) for n, s in case.content["variables"].items()}
    return model, load_tf1_variables(model, weights)


def logits_model(model):
    return keras.Model(model.input, [model.get_layer("logits").output, model.output])


# Every kind of layer whose output depends on the size of its input; for the dense
# prediction cell, see test_dense_prediction_cell.py.
OPEN_SIZES = {
    "mobilenet_v2_dm05_os8",
    "mobilenet_v2_image_pyramid_avg",
    "mobilenet_v2_two_level_decoder",
    "mobilenet_v3_large_seg_lraspp",
}


@pytest.fixture(scope="module", params=CASES)
def golden_run(request):
    """A case, its model, logits and output; some cases run without static shapes."""
    case = GoldenCase.load(request.param)
    model, report = build_golden_model(case)
    assert report.complete
    call = logits_model(model)
    if request.param in OPEN_SIZES:
        signature = [tf.TensorSpec([None, None, None, 3])]
        call = tf.function(call, signature, jit_compile=False, autograph=False)
    logits, output = call(tf.constant(case.images()))
    return case, model, logits.numpy(), output.numpy()


def test_open_size_names_are_golden_cases():
    assert set(CASES) > OPEN_SIZES


def test_logits_match_official_code(golden_run):
    case, _, logits, _ = golden_run
    golden = case.arrays["logits"]
    assert logits.shape == golden.shape
    # About 4e-6 of the standard deviation; a wrong batch norm epsilon gives 1e-3.
    assert np.abs(logits - golden).max() <= 5e-5 * golden.std()


def test_labels_match_official_labels(golden_run):
    case, _, _, output = golden_run
    labels = case.arrays["labels"]
    assert output.dtype == np.float32
    assert output.shape == (*labels.shape, case.flags["num_classes"])
    assert np.mean(output.argmax(-1) == labels) >= 0.999


def test_variables_have_official_names_and_shapes(golden_run):
    case, model, _, _ = golden_run
    shapes = {name: list(array.shape) for name, array in tf1_variables(model).items()}
    assert shapes == case.content["variables"]


def test_multi_scale_labels_match_official_labels(golden_run):
    case, model, _, _ = golden_run
    if "multi_scale_labels" not in case.arrays:
        return  # this case has a single scale
    scales, flip = case.content["eval_scales"], case.content["add_flipped_images"]
    assert len(scales) == 3 and flip
    labels = predict_labels(model, case.images(), scales, flip)
    assert np.mean(labels == case.arrays["multi_scale_labels"]) >= 0.999


def test_one_case_has_multi_scale_labels():
    cases = [GoldenCase.load(name) for name in CASES]
    assert sum("multi_scale_labels" in case.arrays for case in cases) == 1


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2_dm05_os8",
        "mobilenet_v2_image_pyramid_avg",
        "mobilenet_v2_two_level_decoder",
        "mobilenet_v3_large_seg_lraspp",
    ],
)
def test_fixed_size_model_matches_golden_outputs(name):
    case = GoldenCase.load(name)
    size = tuple(case.flags["crop_size"])
    model, _ = build_golden_model(case, image_size=size, batch_size=1)
    fixed = logits_model(model)
    golden = case.arrays["logits"]
    assert fixed.output_shape == [golden.shape, (1, *size, golden.shape[-1])]
    logits, output = fixed(case.images())
    assert np.abs(logits - golden).max() <= 5e-5 * golden.std()
    assert np.mean(output.numpy().argmax(-1) == case.arrays["labels"]) >= 0.999


def test_pyramid_merges_logits_by_max_or_average(stub_backbone):
    image = GoldenCase.load("mobilenet_v2_os16").images()
    flags = {"aspp_convs_filters": 16}
    pyramid = flags | {"image_pyramid": "0.5,1"}
    logits = {}
    for name, options in (
        ("one", flags),
        ("max", pyramid | {"merge_method": "max"}),
        ("avg", pyramid | {"merge_method": "avg"}),
    ):
        model = build_model(ModelConfig.from_official_flags(options))
        shapes = {n: array.shape for n, array in tf1_variables(model).items()}
        load_tf1_variables(model, {n: value(n, s) for n, s in shapes.items()})
        logits[name] = np.array(logits_model(model)(image)[0])
    half = 2 * logits["avg"] - logits["one"]
    assert np.abs(half - logits["one"]).max() > 0.1 * np.std(half)
    largest = np.maximum(half, logits["one"])
    np.testing.assert_allclose(logits["max"], largest, atol=1e-4 * np.std(half))


def test_model_summary_matches_the_paper_figure():
    model = build_model(ModelConfig(depth_multiplier=0.1), image_size=(65, 97))
    names = [layer.name for layer in model.layers]
    assert names == [
        "image",
        "normalize",
        "backbone",
        "context",
        "decoder",
        "logits.semantic",
        "logits",
        "resize",
    ]
    shapes = {layer.name: layer.output for layer in model.layers}
    # ceil(65 / 16) = 5, ceil(97 / 16) = 7 and, at the decoder's stride 4, 17 x 25.
    assert shapes["context"].shape == (None, 5, 7, 256)
    assert shapes["logits"].shape == (None, 17, 25, 21)
    assert shapes["resize"].shape == (None, 65, 97, 21)
