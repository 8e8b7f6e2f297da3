"""The dense prediction cell: branches, rates and files."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER
from reference_heads import (
    assert_same,
    conv,
    fill_variables,
    resize_like,
    separable_conv,
    window_means,
)

from deeplab_tf import UserError
from deeplab_tf.config import (
    RELEASED_CELL,
    CellBranch,
    ContextConfig,
    ModelConfig,
)
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.dense_prediction_cell import dense_prediction_cell
from deeplab_tf.models.layers import head_style
from deeplab_tf.models.resampling import WindowMean
from deeplab_tf.models.variables import leaf_layers

pytestmark = pytest.mark.usefixtures("stub_backbone")


def cell_model(branches, output_stride=16, window=None):
    x = keras.Input((None, None, 4))
    y = dense_prediction_cell(x, branches, output_stride, window, **head_style())
    return keras.Model(x, y)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_rates_scale_with_output_stride(output_stride):
    model = cell_model(RELEASED_CELL, output_stride)
    rates = [
        model.get_layer(f"meta_architecture.branch{i}_depthwise").dilation_rate
        for i in range(5)
    ]
    at_16 = [(1, 6), (18, 15), (6, 3), (1, 1), (6, 21)]
    at_8 = [(2, 12), (36, 30), (12, 6), (2, 2), (12, 42)]
    assert rates == {16: at_16, 8: at_8}[output_stride]


CELL = (
    CellBranch("conv", -1, (3, 3), (1, 2)),
    CellBranch("pyramid_pooling", -1, grid_size=(2, 3)),
    CellBranch("conv", 0),
)


def test_cell_equals_reference_branches():
    model, w = fill_variables(cell_model(CELL, output_stride=8))
    x = np.random.RandomState(0).standard_normal((2, 7, 9, 4)).astype("float32")
    scope = "meta_architecture/branch"
    dilated = separable_conv(x, w, f"{scope}0", (2, 4))  # 16 // 8 times (1, 2)
    # ceil(7 / 2) x ceil(9 / 3) cells are averaged, at 4 x 7 places.
    pooled = conv(window_means(x, (4, 3), (1, 1)), w, f"{scope}1")
    assert pooled.shape == (2, 4, 7, 256)
    parts = [dilated, resize_like(pooled, x), conv(dilated, w, f"{scope}2")]
    expected = conv(tf.concat(parts, -1), w, "meta_architecture/concat_projection")
    assert_same(model(x), expected)
    signature = [tf.TensorSpec([None, None, None, 4])]
    assert_same(tf.function(model, signature, autograph=False)(x), expected)


def test_pyramid_pooling_matches_hand_computed_values():
    model = cell_model([CellBranch("pyramid_pooling", grid_size=(2, 1))])
    kernel = np.zeros((1, 1, 4, 256), np.float32)
    kernel[0, 0, 0, 0] = 1.0  # the first channel passes
    model.get_layer("meta_architecture.branch0").set_weights([kernel])
    branch = keras.Model(
        model.input, model.get_layer("meta_architecture.branch0.resize").output
    )
    rows = np.array([0.0, 2.0, 4.0, 12.0], np.float32)
    x = rows[None, :, None, None] * np.ones((1, 4, 5, 4), np.float32)
    # Means of two of the four rows are 1, 3 and 8. Resized to four rows with aligned
    # corners they are read at 0, 2/3, 4/3 and 2: 1, 1 + 2/3 * 2, 3 + 1/3 * 5, 8.
    expected = np.array([1.0, 7 / 3, 14 / 3, 8.0])
    found = branch(x)
    assert found.shape == (1, 4, 5, 256)
    for column in range(5):  # one part spans the full width
        np.testing.assert_allclose(found[0, :, column, 0], expected, rtol=1e-4)
    np.testing.assert_array_equal(found[..., 1:], 0.0)


def test_cell_uses_pooling_window_of_model():
    config = ModelConfig(
        output_stride=8,
        context=ContextConfig(
            dense_prediction_cell=(CellBranch("pyramid_pooling", grid_size=(2, 1)),),
            image_pooling_crop_size=(65, 33),
        ),
    )
    (layer,) = (
        x for x in leaf_layers(build_model(config)) if isinstance(x, WindowMean)
    )
    # ceil(65 / 8) = 9 and ceil(33 / 8) = 5 cells; half of 9 is rounded up to 5.
    assert layer.window_size((20, 20)) == [5, 5]


CELL_FILE = FOLDER / "cells/dense_prediction_cell.json"


@pytest.mark.parametrize(
    "form",
    [
        json.loads(CELL_FILE.read_text()),
        CELL_FILE.read_text(),
        str(CELL_FILE),
        "deeplab/core/dense_prediction_cell_branch5_top1_cityscapes.json",
    ],
    ids=["list", "text", "path", "official_name"],
)
def test_all_cell_formats_are_parsed(form):
    config = ModelConfig.from_official_flags({"dense_prediction_cell_json": form})
    assert config.context.dense_prediction_cell == RELEASED_CELL


def test_existing_file_overrides_official_name(tmp_path):
    path = tmp_path / "dense_prediction_cell_branch5_top1_cityscapes.json"
    path.write_text('[{"op": "pyramid_pooling", "grid_size": [4, 2], "input": -1}]')
    config = ModelConfig.from_official_flags({"dense_prediction_cell_json": str(path)})
    only = CellBranch("pyramid_pooling", grid_size=(4, 2))
    assert config.context.dense_prediction_cell == (only,)


def test_empty_cell_means_aspp():
    for empty in ("", None):
        flags = {"dense_prediction_cell_json": empty}
        config = ModelConfig.from_official_flags(flags)
        assert config == ModelConfig.from_official_flags({})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([{"op": "pool"}], "op of a cell must be conv or pyramid_pooling; .*'pool'"),
        ([{"op": "conv", "kernel": 5}], r"kernel of a cell must be 1 or 3; .*\(5, 5\)"),
        ([{"op": "conv", "kernel": [1, 3]}], r"must be 1 or 3; received \(1, 3\)"),
        (
            [{"op": "conv", "kernel": 3, "rate": 0}],
            r"rate .* least 1 .*\(0, 0\)",
        ),
        (
            [{"op": "conv", "kernel": 3, "rate": [1.5, 1]}],
            r"two integers.*\(1.5, 1\)",
        ),
        ([{"op": "pyramid_pooling", "grid_size": [1, 0]}], r"grid_size .*\(1, 0\)"),
        ([{"op": "conv", "input": "0"}], "input of a cell .*received '0'"),
        ("[]", "has no branches"),
        ([{"op": "conv", "stride": 2}], "unexpected keyword argument 'stride'"),
        ([{"kernel": 3}], "missing .*'op'"),
        (["conv"], ""),
        ("[{", "Expecting"),
        ("nowhere/cell.json", "No such file"),
    ],
)
def test_invalid_cell_is_refused(cell, message):
    flags = {"dense_prediction_cell_json": cell}
    with pytest.raises(UserError, match=f"^dense_prediction_cell_json .*{message}"):
        ModelConfig.from_official_flags(flags)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            [0],
            r"branch 0 of the dense prediction cell needs an input of -1; received 0",
        ),
        ([-1, -1, 2], r"branch 2 .* needs an input of -1 to 1; received 2"),
        ([-1, -2], r"branch 1 .* needs an input of -1 to 0; received -2"),
    ],
)
def test_branch_input_must_be_earlier_branch(inputs, message):
    branches = [{"op": "conv", "kernel": 1, "input": source} for source in inputs]
    with pytest.raises(UserError, match=message):
        ModelConfig.from_official_flags({"dense_prediction_cell_json": branches})
