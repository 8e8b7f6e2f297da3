"""The training history and its restarts."""

import json

import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs

from deeplab_tf import UserError
from deeplab_tf.training.history import History

ROWS = [
    {"step": 10, "data_loss": 2.5, "learning_rate": 0.007},
    {"step": 20, "data_loss": 1.5, "learning_rate": 0.006},
    {"step": 20, "miou": 0.25},
    {"step": 30, "data_loss": 1.25, "learning_rate": 0.005},
]


def make_history(folder, rows=ROWS):
    history = History(folder)
    for row in rows:
        history.append(row)
    return history


def history_of_scores(*mious):
    rows = [{"step": 10 * i, "miou": miou} for i, miou in enumerate(mious, 1)]
    return make_history(None, rows)


@pytest.mark.parametrize("scheme", ["", "ram://"])
def test_rows_are_restored(scheme, tmp_path):
    folder = scheme + str(tmp_path / "new")
    make_history(folder).flush()
    with tf.io.gfile.GFile(f"{folder}/history.jsonl") as file:
        lines = [json.loads(line) for line in file.read().splitlines()]
    assert [next(iter(row)) for row in lines] == ["checksum"] * 4
    assert [{k: v for k, v in row.items() if k != "checksum"} for row in lines] == ROWS
    reloaded = History(folder)
    reloaded.restart(30)
    assert reloaded.rows == ROWS
    reloaded.append({"step": 40, "data_loss": np.float32(0.5)})
    reloaded.flush()
    last = History(folder)
    last.restart(100)
    assert last.rows == [*ROWS, {"step": 40, "data_loss": 0.5}]


def test_rows_are_not_written_before_flush(tmp_path):
    make_history(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_history_without_folder_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = History(None)
    history.restart(0)
    history.append(ROWS[2])
    history.flush()
    assert history.best == (20, 0.25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (10, 1), (19, 1), (20, 3)])
def test_restart_drops_later_rows(step, kept, tmp_path):
    make_history(str(tmp_path)).flush()
    history = History(str(tmp_path))
    history.restart(step)
    assert history.rows == ROWS[:kept]
    assert history.best == ((20, 0.25) if kept == 3 else None)
    history.append({"step": 25, "data_loss": 1.0})
    history.flush()
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == kept + 1 and json.loads(lines[-1])["step"] == 25


def test_restart_without_file_gives_empty_history(tmp_path):
    history = History(str(tmp_path))
    history.restart(0)
    assert history.rows == [] and history.best is None


def _drop_line(lines, number):
    return [line for i, line in enumerate(lines) if i != number]


DAMAGE = {
    "first line lost": lambda lines: lines[1:],
    "line lost": lambda lines: _drop_line(lines, 2),
    "last line lost": lambda lines: lines[:-1],
    "line doubled": lambda lines: [*lines[:2], *lines[1:]],
    "lines swapped": lambda lines: [*lines[:2], lines[3], lines[2]],
    "value changed": lambda lines: [line.replace(b"0.25", b"0.75") for line in lines],
    "no checksum": lambda lines: [lines[0], b'{"step": 20}\n', *lines[2:]],
    "last line cut": lambda lines: [*lines[:3], lines[3][:-4]],
    "only line cut": lambda lines: [b'{"step": 1'],
    "no checksums": lambda lines: [json.dumps(row).encode() + b"\n" for row in ROWS],
    "last line alone": lambda lines: [b'{"step": 30, "miou": 0.75}\n'],
    "empty": lambda lines: [],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_history_is_refused(kind, tmp_path):
    make_history(str(tmp_path)).flush()
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"".join(DAMAGE[kind](path.read_bytes().splitlines(True))))
    with pytest.raises(UserError, match=r"history.jsonl") as error:
        History(str(tmp_path)).restart(30)
    assert "\n" not in str(error.value)


def test_empty_history_has_no_file(tmp_path):
    make_history(str(tmp_path)).flush()
    History(str(tmp_path)).flush()
    assert list_outputs(tmp_path) == []


def test_non_finite_numbers_are_restored_as_nan(tmp_path):
    make_history(str(tmp_path), [{"step": 1, "data_loss": np.float32("inf")}]).flush()
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
def test_error_names_number_of_invalid_line(line, tmp_path):
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
        # A tie is no improvement.
        ((0.25, 0.5, 0.5), (20, 0.5), 1),
        ((0.75, 0.5, 0.25, 0.5), (10, 0.75), 3),
    ],
)
def test_best_score_and_evaluations_since_best_are_tracked(mious, best, since):
    history = history_of_scores(*mious)
    assert history.best == best
    assert history.evaluations_since_best == since


def test_values_skip_rows_without_key():
    history = make_history(None)
    steps, losses = history.values("data_loss")
    assert steps.tolist() == [10, 20, 30] and losses.tolist() == [2.5, 1.5, 1.25]
    assert [part.tolist() for part in history.values("nothing")] == [[], []]
