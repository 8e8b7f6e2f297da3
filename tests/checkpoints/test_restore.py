"""Loading arrays into a model by official name, and the report about it."""

import numpy as np
import pytest
from golden_case import GoldenCase

from deeplab_tf import UserError
from deeplab_tf.checkpoints.restore import (
    is_model_variable,
    last_layer_scopes,
    load_tf1_variables,
    require_complete,
    tf1_variables,
)

LOGITS = ("logits/semantic/weights", "logits/semantic/biases")


def is_untouched(model):
    return not any(array.any() for array in tf1_variables(model).values())


def test_variables_round_trip_by_official_name(zero_model, arrays, has_values):
    assert is_untouched(zero_model)
    report = load_tf1_variables(zero_model, arrays)
    assert report.complete
    assert set(report.restored) == set(arrays)
    assert str(report) == "272 restored"
    assert has_values(zero_model, arrays)
    assert set(tf1_variables(zero_model)) == set(arrays)


def test_returned_arrays_are_copies(zero_model, arrays, has_values):
    copies = tf1_variables(zero_model)
    load_tf1_variables(zero_model, arrays)
    assert not copies["MobilenetV2/Conv/weights"].any()


@pytest.mark.parametrize(
    "name",
    [
        "global_step",
        "beta1_power",
        "MobilenetV2/Conv/weights/Momentum",
        "MobilenetV2/Conv/BatchNorm/gamma/Adam_1",
        "MobilenetV2/Conv/weights_quant/min",
        "MobilenetV2/expanded_conv/expand/act_quant/max",
        "logits/semantic/biases/ExponentialMovingAverage",
    ],
)
def test_bookkeeping_variables_are_recognized(name):
    assert not is_model_variable(name)


def test_bookkeeping_variables_are_ignored(zero_model, arrays, has_values):
    slots = {f"{name}/Momentum": array + 1 for name, array in arrays.items()}
    official = arrays | slots | {"global_step": np.int64(30000)}
    assert load_tf1_variables(zero_model, official).complete
    assert has_values(zero_model, arrays)


def test_logits_of_a_different_class_count_are_skipped(zero_model, arrays, has_values):
    fewer = {name: arrays[name][..., :3] for name in LOGITS}
    report = load_tf1_variables(zero_model, arrays | fewer)
    assert report.skipped == (
        (LOGITS[0], (1, 1, 256, 3), (1, 1, 256, 21)),
        (LOGITS[1], (3,), (21,)),
    )
    assert len(report.restored) == 270
    rest = {name: array for name, array in arrays.items() if name not in LOGITS}
    assert has_values(
        zero_model, rest | {name: np.zeros_like(arrays[name]) for name in LOGITS}
    )
    assert not report.complete
    assert str(report) == (
        "270 restored, 2 skipped because of their shape (logits/semantic/weights "
        "1x1x256x3 into 1x1x256x21, logits/semantic/biases 3 into 21)"
    )


def test_report_names_missing_and_unexpected_variables(zero_model, arrays):
    given = {n: a for n, a in arrays.items() if not n.startswith("aspp0/")}
    report = load_tf1_variables(
        zero_model, given | {"aspp1_depthwise/gamma": np.ones(1)}
    )
    missing = ["weights", *("BatchNorm/" + s for s in ("gamma", "beta"))]
    missing += ["BatchNorm/moving_mean", "BatchNorm/moving_variance"]
    assert report.missing == tuple(f"aspp0/{leaf}" for leaf in missing)
    assert report.unexpected == ("aspp1_depthwise/gamma",)
    assert "5 missing in the checkpoint (aspp0/weights, " in str(report)
    assert ", ...), 1 not in the model (aspp1_depthwise/gamma)" in str(report)
    with pytest.raises(
        UserError, match=r"^model.ckpt is not .*mobilenet_v2.* 5 missing"
    ):
        require_complete(report, "model.ckpt", zero_model)


def test_excluded_scopes_are_unchanged(zero_model, arrays, has_values):
    report = load_tf1_variables(zero_model, arrays, exclude=("logits", "aspp"))
    excluded = {n for n in arrays if n.startswith(("logits/", "aspp0/"))}
    assert len(excluded) == 2 + 5
    assert set(report.restored) == set(arrays) - excluded
    assert report.complete
    assert has_values(zero_model, {n: np.zeros_like(arrays[n]) for n in excluded})


def test_last_layers_are_the_logits_or_the_full_head():
    assert last_layer_scopes(logits_only=True) == ("logits",)
    heads = {"logits", "image_pooling", "aspp", "concat_projection", "decoder"}
    assert set(last_layer_scopes(logits_only=False)) == heads | {"meta_architecture"}


def test_other_backbone_is_refused_even_if_the_head_fits(zero_model, arrays):
    renamed = {n.replace("MobilenetV2", "xception_65"): a for n, a in arrays.items()}
    with pytest.raises(
        UserError, match=r"^model.ckpt differs.*mobilenet_v2: nothing of the"
    ):
        load_tf1_variables(zero_model, renamed, source="model.ckpt")
    assert is_untouched(zero_model)


def test_checkpoint_of_a_different_width_is_refused(zero_model):
    narrow = GoldenCase.load("mobilenet_v2_dm05_os8").weights()
    with pytest.raises(UserError, match="3x3x3x16 into 3x3x3x32"):
        load_tf1_variables(zero_model, narrow)
    assert is_untouched(zero_model)


def test_checkpoint_without_weights_is_refused(zero_model):
    with pytest.raises(UserError, match="0 restored, 272 missing"):
        load_tf1_variables(zero_model, {"global_step": np.int64(1)})
