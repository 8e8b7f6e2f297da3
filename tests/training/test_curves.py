"""Training curves, read back from the PNG."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.training.curves import draw_curves
from deeplab_tf.training.history import History

LOSS, MIOU, BEST = (31, 119, 180), (44, 160, 44), (214, 39, 40)


def draw(history, path):
    draw_curves(history, path)
    with tf.io.gfile.GFile(path, "rb") as file:
        return np.array(Image.open(io.BytesIO(file.read())))


def find_pixels(plot, color):
    """Returns rows and columns of the pixels with a colour."""
    return np.nonzero((plot == color).all(-1))


def make_history(losses, mious=(), rate=0.01):
    """Returns a history with a loss at every step and an mIoU every 50 steps."""
    history = History(None)
    for step, loss in enumerate(losses, 1):
        history.append({"step": step, "data_loss": loss, "learning_rate": rate})
    for i, miou in enumerate(mious, 1):
        history.append({"step": 50 * i, "miou": miou})
    return history


def test_curves_follow_values(tmp_path):
    falling = make_history(np.linspace(3, 1, 200), (0.2, 0.8, 0.6, 0.5))
    plot = draw(falling, str(tmp_path / "curves.png"))
    assert plot.shape[2] == 3
    rows, columns = find_pixels(plot, LOSS)
    assert rows[columns.argmin()] < rows[columns.argmax()]
    rows, columns = find_pixels(plot, MIOU)
    assert rows[columns.argmin()] > rows[columns.argmax()]
    # The star is at the second of four evaluations, a third of the way; the star in the
    # legend is further right.
    best, left, right = np.array([find_pixels(plot, BEST)[1].min(), *_limits(columns)])
    assert abs((best - left) / (right - left) - 1 / 3) < 0.05


def _limits(columns):
    return columns.min(), columns.max()


def test_outlier_does_not_flatten_curve(tmp_path):
    losses = np.linspace(3, 1, 200)
    calm = draw(make_history(losses), str(tmp_path / "calm.png"))
    losses[120] = 1e6
    wild = draw(make_history(losses), str(tmp_path / "wild.png"))
    assert wild.shape == calm.shape
    for one, other in zip(
        find_pixels(calm, LOSS), find_pixels(wild, LOSS), strict=True
    ):
        assert abs(int(np.ptp(one)) - int(np.ptp(other))) <= 3


def test_noisy_loss_is_smoothed(tmp_path):
    losses = np.random.RandomState(0).uniform(1, 3, 5000)
    rows, columns = find_pixels(
        draw(make_history(losses), str(tmp_path / "noisy.png")), LOSS
    )
    # The noise spans two thirds of the height, about 200 pixels.
    assert np.ptp(rows) < 50 < 500 < np.ptp(columns)


def test_panels_without_values_are_omitted(tmp_path):
    with_miou = draw(make_history([2, 1], [0.5]), str(tmp_path / "both.png"))
    without = draw(make_history([2, 1]), "ram://curves/without.png")
    assert without.shape[0] < with_miou.shape[0]
    # A single row with zeros.
    one = draw(make_history([0.0], rate=0.0), str(tmp_path / "one.png"))
    assert len(find_pixels(one, LOSS)[0])


def test_best_follows_chosen_metric(tmp_path):
    history = History(str(tmp_path), "top1")
    for step, (top1, top5) in enumerate([(0.2, 0.9), (0.6, 0.8), (0.5, 1.0)], 1):
        history.append({"step": step, "top1": top1, "top5": top5})
    assert history.best == (2, 0.6)
    assert history.evaluations_since_best == 1
    plot = draw(history, str(tmp_path / "curves.png"))
    rows, columns = find_pixels(plot, MIOU)
    assert rows[columns.argmin()] > rows[columns.argmax()]


def test_empty_history_draws_no_plot(tmp_path):
    draw_curves(History(None), str(tmp_path / "curves.png"))
    assert not list(tmp_path.iterdir())
