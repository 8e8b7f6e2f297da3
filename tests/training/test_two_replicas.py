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
def found(tmp_path_factory):
    """What two replicas made of everything, by name."""
    path = tmp_path_factory.mktemp("replicas") / "found.npz"
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.run(
        [sys.executable, two_replicas.__file__, path],
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return dict(np.load(path))


def of_one_device(case):
    """Returns what one device makes of the same batch."""
    config = TrainConfig(
        batch_norm="freeze", base_learning_rate=0.1, **two_replicas.OPTIONS[case]
    )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(case if case.startswith("mixed") else "float32")
    try:
        return two_replicas.outcome(Trainer(toy_model(), config))
    finally:
        keras.config.set_dtype_policy(before)


def test_synchronised_moments_lose_no_digits(found):
    x, up = (a.astype(np.float64) for a in two_replicas.features())
    gamma, beta = np.array(two_replicas.GAMMA), np.array(two_replicas.BETA)
    axes = (0, 1, 2, 3)
    mean, variance = x.mean(axes), x.var(axes)
    # The spread is a hundred-thousandth of the mean: float32 squares keep no digit.
    assert np.all(variance < 1e-7 * mean**2 * 1.1)
    count = x[..., 0].size
    scale = 1 / np.sqrt(variance + two_replicas.EPSILON)
    unit = (x - mean) * scale
    slope = up - up.mean(axes) - unit * (up * unit).mean(axes)
    expected = {
        "y": gamma * unit + beta,
        "mean": np.stack([mean, mean]),
        "variance": np.stack([variance, variance]) * count / (count - 1),
        "dx": gamma * scale * slope,
        # Gradients of variables are of each replica; the optimiser adds them up.
        "dgamma": (up * unit).sum((1, 2, 3)),
        "dbeta": up.sum((1, 2, 3)),
    }
    tolerances = {"mean": 1e-7, "variance": 0.0, "dbeta": 1e-5}
    for name, array in expected.items():
        largest = np.abs(array).max()
        np.testing.assert_allclose(
            found[f"sync/{name}"],
            array,
            rtol=1e-3,
            atol=tolerances.get(name, 1e-2) * largest,
            err_msg=name,
        )


def test_hard_pixels_are_picked_in_each_part_of_each_replica(found):
    images, labels = two_replicas.batch()
    logits = toy_model()(images)
    expected = 0.0
    for part in range(2):
        # Rows of the first replica, and of the second, of which some have no label.
        picked = [
            loss_and_count(labels[rows], tf.gather(logits, rows), 255, (), 0.25)
            for rows in ([2 * part, 2 * part + 1], [2 * part + 4, 2 * part + 5])
        ]
        totals, counts = np.array(picked, np.float64).T
        expected += totals.sum() / counts.sum() / 2
    assert found["mined/losses"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("case", "tolerance"), [("averaged", 1e-5), ("mixed_float16", 2e-3)]
)
def test_replicas_do_what_one_device_does(found, case, tolerance):
    expected = of_one_device(case)
    losses = found[f"{case}/losses"]
    np.testing.assert_allclose(losses, expected["losses"], rtol=tolerance)
    assert losses[1] < 0.999 * losses[0]
    for name, array in expected.items():
        np.testing.assert_allclose(
            found[f"{case}/{name}"],
            array,
            rtol=100 * tolerance,
            atol=tolerance * np.abs(array).max(),
            err_msg=name,
        )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_an_image_of_any_replica_is_named(found, policy):
    message = str(found[f"broken image/{policy}"])
    # Two batches of eight came before it.
    assert message.startswith("image 6 of the batch at step "), message
    assert " ((22, 1)) has pixels that are not finite" in message


def test_several_replicas_cannot_have_the_compiler(found):
    message = (
        "jit=on needs a single replica; 2 replicas exchange values within the step"
    )
    assert str(found["refusal"]) == message
