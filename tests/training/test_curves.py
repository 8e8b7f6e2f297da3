"""The curves of a training, read back from their PNG."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.training.curves import draw_curves
from deeplab_tf.training.history import History

LOSS, MIOU, BEST = (31, 119, 180), (44, 160, 44), (214, 39, 40)


def drawn(history, path):
    draw_curves(history, path)
    with tf.io.gfile.GFile(path, "rb") as file:
        return np.array(Image.open(io.BytesIO(file.read())))


def places(picture, color):
    """Returns rows and columns of the pixels of a colour."""
    return np.nonzero((picture == color).all(-1))


def course(losses, mious=(), rate=0.01):
    """Returns a history with a loss at every step and an mIoU at every 50th."""
    history = History(None)
    for step, loss in enumerate(losses, 1):
        history.append({"step": step, "data_loss": loss, "learning_rate": rate})
    for i, miou in enumerate(mious, 1):
        history.append({"step": 50 * i, "miou": miou})
    return history


def test_curves_go_where_the_values_do(tmp_path):
    falling = course(np.linspace(3, 1, 200), (0.2, 0.8, 0.6, 0.5))
    picture = drawn(falling, str(tmp_path / "curves.png"))
    assert picture.shape[2] == 3
    rows, columns = places(picture, LOSS)
    assert rows[columns.argmin()] < rows[columns.argmax()]
    rows, columns = places(picture, MIOU)
    assert rows[columns.argmin()] > rows[columns.argmax()]
    # The star is at the second of four evaluations, a third of the way; that of the
    # legend is at the right.
    best, left, right = np.array([places(picture, BEST)[1].min(), *_ends(columns)])
    assert abs((best - left) / (right - left) - 1 / 3) < 0.05


def _ends(columns):
    return columns.min(), columns.max()


def test_one_outlier_does_not_flatten_the_curve(tmp_path):
    losses = np.linspace(3, 1, 200)
    calm = drawn(course(losses), str(tmp_path / "calm.png"))
    losses[120] = 1e6
    wild = drawn(course(losses), str(tmp_path / "wild.png"))
    assert wild.shape == calm.shape
    for one, other in zip(places(calm, LOSS), places(wild, LOSS), strict=True):
        assert abs(int(np.ptp(one)) - int(np.ptp(other))) <= 3


def test_the_curve_of_a_noisy_loss_is_smooth(tmp_path):
    losses = np.random.RandomState(0).uniform(1, 3, 5000)
    rows, columns = places(drawn(course(losses), str(tmp_path / "noisy.png")), LOSS)
    # The noise is of two thirds of the height, some 200 pixels.
    assert np.ptp(rows) < 50 < 500 < np.ptp(columns)


def test_only_what_there_is_gets_a_panel(tmp_path):
    with_miou = drawn(course([2, 1], [0.5]), str(tmp_path / "both.png"))
    without = drawn(course([2, 1]), "ram://curves/without.png")
    assert without.shape[0] < with_miou.shape[0]
    # The first report, of weights that are all zero.
    one = drawn(course([0.0], rate=0.0), str(tmp_path / "one.png"))
    assert len(places(one, LOSS)[0])


def test_the_best_is_of_the_measure_that_is_asked_for(tmp_path):
    history = History(str(tmp_path), "top1")
    for step, (top1, top5) in enumerate([(0.2, 0.9), (0.6, 0.8), (0.5, 1.0)], 1):
        history.append({"step": step, "top1": top1, "top5": top5})
    assert history.best == (2, 0.6)
    assert history.evaluations_since_best == 1
    picture = drawn(history, str(tmp_path / "curves.png"))
    rows, columns = places(picture, MIOU)
    assert rows[columns.argmin()] > rows[columns.argmax()]


def test_an_empty_history_draws_nothing(tmp_path):
    draw_curves(History(None), str(tmp_path / "curves.png"))
    assert not list(tmp_path.iterdir())
