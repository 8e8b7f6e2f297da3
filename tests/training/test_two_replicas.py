"""Two replicas in one process: batch normalisation, mining, averages, float16."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import two_replicas
from conftest import ROOT
from toy_model import toy_model

from deeplab_tf import TrainConfig, Trainer
from deeplab_tf.training.losses import loss_and_count

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All results of two replicas by name."""
    path = tmp_path_factory.mktemp("replicas") / "results.npz"
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.run(
        [sys.executable, two_replicas.__file__, path],
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return dict(np.load(path))


def train_on_one_device(case):
    """Trains the same batch on one device."""
    config = TrainConfig(
        batch_norm="freeze", base_learning_rate=0.1, **two_replicas.OPTIONS[case]
    )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(case if case.startswith("mixed") else "float32")
    try:
        return two_replicas.train_two_steps(Trainer(toy_model(), config))
    finally:
        keras.config.set_dtype_policy(before)


def test_synchronised_moments_are_exact(results):
    x, upstream = (a.astype(np.float64) for a in two_replicas.features())
    gamma, beta = np.array(two_replicas.GAMMA), np.array(two_replicas.BETA)
    axes = (0, 1, 2, 3)
    mean, variance = x.mean(axes), x.var(axes)
    # The deviation is 1e-5 of the mean: squares in float32 would lose all digits.
    assert np.all(variance < 1e-7 * mean**2 * 1.1)
    count = x[..., 0].size
    scale = 1 / np.sqrt(variance + two_replicas.EPSILON)
    unit = (x - mean) * scale
    slope = upstream - upstream.mean(axes) - unit * (upstream * unit).mean(axes)
    expected = {
        "y": gamma * unit + beta,
        "mean": np.stack([mean, mean]),
        "variance": np.stack([variance, variance]) * count / (count - 1),
        "dx": gamma * scale * slope,
        # Gradients of variables are per replica; the optimiser sums them.
        "dgamma": (upstream * unit).sum((1, 2, 3)),
        "dbeta": upstream.sum((1, 2, 3)),
    }
    tolerances = {"mean": 1e-7, "variance": 0.0, "dbeta": 1e-5}
    for name, array in expected.items():
        largest = np.abs(array).max()
        np.testing.assert_allclose(
            results[f"sync/{name}"],
            array,
            rtol=1e-3,
            atol=tolerances.get(name, 1e-2) * largest,
            err_msg=name,
        )


def test_hard_pixels_are_picked_per_part_and_replica(results):
    images, labels = two_replicas.batch()
    logits = toy_model()(images)
    expected = 0.0
    for part in range(2):
        # Rows of the first replica, and of the second, some of which have no labels.
        picked = [
            loss_and_count(labels[rows], tf.gather(logits, rows), 255, (), 0.25)
            for rows in ([2 * part, 2 * part + 1], [2 * part + 4, 2 * part + 5])
        ]
        totals, counts = np.array(picked, np.float64).T
        expected += totals.sum() / counts.sum() / 2
    assert results["mined/losses"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("case", "tolerance"), [("averaged", 1e-5), ("mixed_float16", 2e-3)]
)
def test_replicas_equal_one_device(results, case, tolerance):
    expected = train_on_one_device(case)
    losses = results[f"{case}/losses"]
    np.testing.assert_allclose(losses, expected["losses"], rtol=tolerance)
    assert losses[1] < 0.999 * losses[0]
    for name, array in expected.items():
        np.testing.assert_allclose(
            results[f"{case}/{name}"],
            array,
            rtol=100 * tolerance,
            atol=tolerance * np.abs(array).max(),
            err_msg=name,
        )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_error_names_broken_image_of_any_replica(results, policy):
    message = str(results[f"broken image/{policy}"])
    # The third batch of eight: samples start at 16.
    assert message.startswith("image 6 of the batch at step "), message
    assert " ((22, 1)) has pixels that are not finite" in message


def test_jit_with_several_replicas_is_refused(results):
    message = (
        "jit=on needs a single replica; 2 replicas exchange values within the step"
    )
    assert str(results["jit error"]) == message
