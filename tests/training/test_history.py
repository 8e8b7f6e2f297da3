"""The course of a training, kept across restarts and drawn."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from listing import listed
from PIL import Image

from deeplab_tf import UserError
from deeplab_tf.training.history import History, collapsed_class, draw_curves

ROWS = [
    {"step": 10, "data_loss": 2.5, "learning_rate": 0.007},
    {"step": 20, "data_loss": 1.5, "learning_rate": 0.006},
    {"step": 20, "miou": 0.25},
    {"step": 30, "data_loss": 1.25, "learning_rate": 0.005},
]
LOSS, MIOU, BEST = (31, 119, 180), (44, 160, 44), (214, 39, 40)


def filled(folder, rows=ROWS):
    history = History(folder)
    for row in rows:
        history.append(row)
    return history


def scored(*mious):
    rows = [{"step": 10 * i, "miou": miou} for i, miou in enumerate(mious, 1)]
    return filled(None, rows)


@pytest.mark.parametrize("scheme", ["", "ram://"])
def test_rows_come_back(scheme, tmp_path):
    folder = scheme + str(tmp_path / "new")
    filled(folder).flush()
    with tf.io.gfile.GFile(f"{folder}/history.jsonl") as file:
        lines = [json.loads(line) for line in file.read().splitlines()]
    assert [next(iter(row)) for row in lines] == ["checksum"] * 4
    assert [{k: v for k, v in row.items() if k != "checksum"} for row in lines] == ROWS
    again = History(folder)
    again.restart(30)
    assert again.rows == ROWS
    again.append({"step": 40, "data_loss": np.float32(0.5)})
    again.flush()
    last = History(folder)
    last.restart(100)
    assert last.rows == [*ROWS, {"step": 40, "data_loss": 0.5}]


def test_nothing_is_written_before_a_flush(tmp_path):
    filled(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_a_folder_rows_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = History(None)
    history.restart(0)
    history.append(ROWS[2])
    history.flush()
    assert history.best == (20, 0.25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (10, 1), (19, 1), (20, 3)])
def test_a_restart_drops_later_rows_for_they_come_again(step, kept, tmp_path):
    filled(str(tmp_path)).flush()
    history = History(str(tmp_path))
    history.restart(step)
    assert history.rows == ROWS[:kept]
    assert history.best == ((20, 0.25) if kept == 3 else None)
    history.append({"step": 25, "data_loss": 1.0})
    history.flush()
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == kept + 1 and json.loads(lines[-1])["step"] == 25


def test_a_restart_without_a_file_is_a_beginning(tmp_path):
    history = History(str(tmp_path))
    history.restart(0)
    assert history.rows == [] and history.best is None


def _without(lines, number):
    return [line for i, line in enumerate(lines) if i != number]


DAMAGE = {
    "first line lost": lambda lines: lines[1:],
    "line lost": lambda lines: _without(lines, 2),
    "last line lost": lambda lines: lines[:-1],
    "line doubled": lambda lines: [*lines[:2], *lines[1:]],
    "lines exchanged": lambda lines: [*lines[:2], lines[3], lines[2]],
    "value changed": lambda lines: [line.replace(b"0.25", b"0.75") for line in lines],
    "no checksum": lambda lines: [lines[0], b'{"step": 20}\n', *lines[2:]],
    "last line cut": lambda lines: [*lines[:3], lines[3][:-4]],
    "only line cut": lambda lines: [b'{"step": 1'],
    "no checksums": lambda lines: [json.dumps(row).encode() + b"\n" for row in ROWS],
    "last line alone": lambda lines: [b'{"step": 30, "miou": 0.75}\n'],
    "emptied": lambda lines: [],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_a_history_is_refused(kind, tmp_path):
    filled(str(tmp_path)).flush()
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"".join(DAMAGE[kind](path.read_bytes().splitlines(True))))
    with pytest.raises(UserError, match=r"history.jsonl") as error:
        History(str(tmp_path)).restart(30)
    assert "\n" not in str(error.value)


def test_a_history_without_rows_has_no_file(tmp_path):
    filled(str(tmp_path)).flush()
    History(str(tmp_path)).flush()
    assert listed(tmp_path) == []


def test_numbers_that_are_not_finite_come_back_as_nan(tmp_path):
    filled(str(tmp_path), [{"step": 1, "data_loss": np.float32("inf")}]).flush()
    history = History(str(tmp_path))
    history.restart(1)
    assert np.isnan(history.rows[0]["data_loss"])


@pytest.mark.parametrize(
    "line",
    [
        *(b"loss: 2.5", b"[1]", b"7", b'{"miou": 1}', b'{"step": "x"}', b"\xff{}"),
        *(b'{"step": true}', b'{"step": 1, "miou": "0.5"}', b'{"step": 1, "step": 2}'),
    ],
)
def test_other_garbage_is_refused_by_line(line, tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 10}\n' + line + b'\n{"step": 20}\n')
    with pytest.raises(
        UserError, match=r"(line 2 of .*history.jsonl|history.jsonl: line 2)"
    ) as error:
        History(str(tmp_path)).restart(30)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mious", "best", "since"),
    [
        ((), None, 0),
        ((0.5,), (10, 0.5), 0),
        ((0.25, 0.5), (20, 0.5), 0),
        # As good is no better.
        ((0.25, 0.5, 0.5), (20, 0.5), 1),
        ((0.75, 0.5, 0.25, 0.5), (10, 0.75), 3),
    ],
)
def test_the_best_evaluation_and_those_since(mious, best, since):
    history = scored(*mious)
    assert history.best == best
    assert history.evaluations_since_best == since


def test_values_are_those_of_the_rows_that_have_them():
    history = filled(None)
    steps, losses = history.values("data_loss")
    assert steps.tolist() == [10, 20, 30] and losses.tolist() == [2.5, 1.5, 1.25]
    assert [part.tolist() for part in history.values("nothing")] == [[], []]


def test_collapsed_predictions_are_told():
    names = ("background", "cat", "dog")
    warning = collapsed_class(np.array([9990, 10, 0]), np.array([71, 20, 9]), names)
    assert warning.startswith(
        "99.9 % of the predictions are 'background', which is 71 % of the truth: "
    )
    assert "learning rate" in warning and "\n" not in warning


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [
        ([9989, 11], [71, 29]),
        # There is nearly nothing else.
        ([10000, 0], [95, 5]),
        ([0, 10000], [5, 95]),
        ([0, 0], [71, 29]),
        ([100, 0], [0, 0]),
    ],
)
def test_other_predictions_are_no_reason_to_warn(predicted, truth):
    names = ("background", "cat")
    assert collapsed_class(np.array(predicted), np.array(truth), names) is None


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
