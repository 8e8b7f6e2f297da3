"""Strategies: one device, two replicas and two workers train alike."""

import contextlib
import io
import json
import os
import subprocess
import sys

import distributed_training
import pytest
from conftest import ROOT
from loopback import cluster_configs

from deeplab_tf import UserError
from deeplab_tf.data.pipeline import find_rows
from deeplab_tf.training.distribution import make_strategy, split_batch_size


def start(*arguments, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, distributed_training.__file__, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_output(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out.splitlines()[-1])


def start_workers(*arguments, count=2):
    for cluster in cluster_configs(count):
        yield start("multi_worker_mirrored", *arguments, TF_CONFIG=json.dumps(cluster))


@pytest.fixture(
    scope="module", params=[pytest.param("freeze", marks=pytest.mark.slow), "sync"]
)
def one_device(request):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        distributed_training.main("one_device", request.param)
    return request.param, json.loads(out.getvalue())


def assert_same(run, expected):
    for name in ("data_loss", "regularization_loss", "learning_rate"):
        values = [result[name] for result in run["results"]]
        reference = [result[name] for result in expected["results"]]
        assert values == pytest.approx(reference, rel=1e-4), name
    # Dead units have norm 0 up to rounding.
    assert run["broken"] == expected["broken"] == distributed_training.BATCH - 1
    assert run["norms"] == pytest.approx(expected["norms"], rel=1e-3, abs=1e-5)


def test_two_replicas_match_one_device(one_device):
    batch_norm, expected = one_device
    assert_same(wait_for_output(start("mirrored", batch_norm)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_workers_train_as_one(one_device, count):
    """Three workers have 1, 1 and 2 of the 4 images."""
    batch_norm, expected = one_device
    workers = list(start_workers(batch_norm, count=count))
    runs = [wait_for_output(worker) for worker in workers]
    assert [run["worker"] for run in runs] == list(range(count))
    for run in runs:
        assert_same(run, expected)


@pytest.mark.slow
def test_workers_with_different_weights_are_refused():
    for worker in list(start_workers("freeze", "differing")):
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 1
        assert "the workers do not start from the same state (their steps: " in errors
        assert "[0, 0]); give all of them the same train_logdir" in errors


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "it is not set"),
        ("{", "received '{' "),
        ("[]", r"received '\[\]'"),
        ('{"cluster": {"worker": ["a:1"]}}', r".*\(KeyError: 'task'\)"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "the cluster has no worker 1",
        ),
        (
            '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
            "'a' is not host:port",
        ),
        (
            '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
            r"the cluster may only contain chief and worker; received \['ps'\]",
        ),
    ],
)
def test_invalid_tf_config_is_refused_with_example(config, problem, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match=rf'TF_CONFIG: {problem}.*; set it .*{{"clu'):
        make_strategy("multi_worker_mirrored")


def test_invalid_devices_are_refused():
    with pytest.raises(UserError, match="num_clones must be at least 1; received 0"):
        make_strategy("mirrored", num_clones=0)
    with pytest.raises(UserError, match="uses one device; num_clones=2 needs"):
        make_strategy("one_device", num_clones=2)
    with pytest.raises(UserError, match=r"there is no TPU nowhere: .*--tpu takes"):
        make_strategy("tpu", tpu="nowhere")


def test_auto_strategy_uses_one_device_on_cpu(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert make_strategy("auto").num_replicas_in_sync == 1
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(UserError, match="TF_CONFIG"):
        make_strategy("auto")


def test_indivisible_batch_is_refused():
    assert split_batch_size(16, 4, 2) == 2
    with pytest.raises(UserError, match=r"a batch of 2 images .* 4 replicas; 4 can"):
        split_batch_size(2, 4, 1)
    message = "a batch of 10 .* among 2 replicas with accumulate_steps=2; 8 can"
    with pytest.raises(UserError, match=message):
        split_batch_size(10, 2, 2)


def test_workers_may_have_different_shares():
    assert [list(find_rows(8, i, 3)) for i in range(3)] == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7],
    ]
    assert split_batch_size(8, 3, 1, workers=3) == 2
    # Two replicas per worker: each has 2 of the worker's 4 images.
    assert split_batch_size(12, 6, 1, workers=3) == 2
    with pytest.raises(UserError, match=r"a batch of 8 .* 6 replicas; 6 can"):
        split_batch_size(8, 6, 1, workers=3)
    with pytest.raises(UserError, match=r"a batch of 2 has too few .* 3 workers; use"):
        split_batch_size(2, 3, 1, workers=3)
