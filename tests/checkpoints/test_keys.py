"""Checkpoint keys of variables, in the format of TensorFlow."""

import pytest
import tensorflow as tf

from deeplab_tf.checkpoints.keys import from_key, to_key, weight_keys

NAMES = ["Conv/weights", "a.b/c", "a.S/b", ".S", "..", "S/S.", "global_step"]


@pytest.mark.parametrize("name", NAMES)
def test_key_matches_tensorflow_and_round_trips(name, tmp_path):
    checkpoint = tf.train.Checkpoint(group={name: tf.Variable(1.0)})
    prefix = checkpoint.write(str(tmp_path / "x"))
    key = to_key("group", name)
    assert key in dict(tf.train.list_variables(prefix))
    assert from_key(key) == ("group", name)


def test_keys_that_are_not_variables_are_ignored():
    assert from_key("_CHECKPOINTABLE_OBJECT_GRAPH") == ()
    assert from_key("aspp0/weights") == ()


def test_averages_take_precedence_over_weights():
    keys = [to_key("average", "a/b"), to_key("model", "a/b"), to_key("model", "c")]
    others = [to_key("step"), to_key("optimizer", "a/b")]
    assert weight_keys([*keys, *others]) == {"a/b": keys[0], "c": keys[2]}
