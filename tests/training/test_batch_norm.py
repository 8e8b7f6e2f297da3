"""Policies of batch normalisation: explicit and automatic."""

import pytest

from deeplab_tf import ModelConfig, UserError, build_model
from deeplab_tf.models.variables import batch_normalizations
from deeplab_tf.training.batch_norm import (
    fused_batch_norm,
    resolve_batch_norm,
    set_batch_norm,
)

FRESH = ("aspp0/BatchNorm/moving_mean", "concat_projection/BatchNorm/moving_mean")


@pytest.mark.parametrize(
    ("images", "replicas", "fresh", "policy", "reason"),
    [
        (16, 1, (), "train", "16 images per replica are enough"),
        (12, 2, FRESH, "train", "12 images per replica are enough"),
        (
            8,
            1,
            (),
            "freeze",
            "a batch of 8 is small, and the checkpoint has all statistics",
        ),
        (11, 1, (), "freeze", "a batch of 11 is small, "),
        (8, 2, (), "sync", "8 images per replica, 16 together"),
        (6, 2, FRESH, "sync", "6 images per replica, 12 together"),
        (1, 12, (), "sync", "1 image per replica, 12 together"),
        (5, 2, (), "freeze", "a batch of 10 is small, and the checkpoint has"),
        (
            8,
            1,
            FRESH,
            "train",
            "a batch of 8 is small, but 2 statistics .*(aspp0/BatchN",
        ),
        (
            1,
            2,
            FRESH,
            "sync",
            "a batch of 2 is small, but 2 statistics were never trained",
        ),
        (1, 1, (), "freeze", "a batch of 1 is small, "),
    ],
)
def test_auto_policy_depends_on_images_and_checkpoint(
    images, replicas, fresh, policy, reason
):
    resolved = resolve_batch_norm("auto", images, replicas, fresh)
    assert resolved.name == policy
    assert all(part in resolved.reason for part in reason.split(".*"))


@pytest.mark.parametrize("policy", ["train", "sync", "freeze"])
@pytest.mark.parametrize("fresh", [(), FRESH])
def test_requested_policy_is_used(policy, fresh):
    for images in (2, 16):
        resolved = resolve_batch_norm(policy, images, 1, fresh)
        assert (resolved.name, resolved.reason) == (policy, "as requested")
    assert resolve_batch_norm("freeze", 1, 1, fresh).name == "freeze"
    assert resolve_batch_norm("sync", 1, 2, fresh).name == "sync"


@pytest.mark.parametrize(
    ("policy", "replicas", "fresh", "message"),
    [
        ("train", 1, (), r"\(train\) on one image at a time; use a larger batch or "),
        ("sync", 1, (), r"\(sync\) on one image at a time; use a larger batch or "),
        ("train", 2, (), "use a larger batch, --batch_norm=sync or --batch_norm=fre"),
        ("auto", 1, FRESH, "larger batch, a --tf_initial_checkpoint of the complete"),
    ],
)
def test_batch_statistics_of_one_image_are_refused(policy, replicas, fresh, message):
    with pytest.raises(UserError, match=message):
        resolve_batch_norm(policy, 1, replicas, fresh)


def test_policy_applies_to_all_layers():
    model = build_model(ModelConfig(depth_multiplier=0.1))
    functions = {}
    for policy in ("freeze", "train", "sync"):
        for replicas in (1, 2):
            set_batch_norm(model, policy, replicas)
            all_layers = batch_normalizations(model)
            assert {layer.frozen for layer in all_layers} == {policy == "freeze"}
            (function,) = {layer.normalize_batch for layer in all_layers}
            functions[policy, replicas] = function
    synchronized = functions.pop(("sync", 2))
    assert set(functions.values()) == {fused_batch_norm}
    assert synchronized is not fused_batch_norm
