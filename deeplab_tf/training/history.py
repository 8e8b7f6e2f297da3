"""The course of a training, in a file of one line per report, and drawn."""

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import ndimage

from deeplab_tf import strict_json
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files
from deeplab_tf.files.outputs import write_bytes, write_text
from deeplab_tf.visualize import drawn, png_bytes

HISTORY_FILE, CURVES_FILE = "history.jsonl", "curves.png"
# From which share of one class on predictions have collapsed, and a truth has not.
_COLLAPSED, _ONE_SIDED = 0.999, 0.95
_REMEDY = "remove it to resume without the history"
_LOSS, _LEARNING_RATE, _SCORE = "tab:blue", "tab:gray", "tab:green"
# What evaluations measure, and what it is called.
MEASURES = {"miou": "mIoU", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}


class History:
    """The rows of `history.jsonl`, in memory until they are flushed.

    Args:
        folder: Folder of the file, the `train_logdir`; None keeps it in memory.
        measure: Name in `MEASURES` of what tells the best evaluation.

    Attributes:
        measure: As given.
        rows: By time. Each has its `step`; a report of the training also `data_loss`,
            `learning_rate` and whatever else, an evaluation the measure.
    """

    def __init__(self, folder: str | None, measure: str = "miou"):
        self.measure = measure
        self.rows = []
        self._evaluations = []
        self._path = folder and os.path.join(folder, HISTORY_FILE)

    def restart(self, step: int) -> None:
        """Takes the rows up to a step from the file, for what follows comes again.

        To be called once before anything is appended; a file that was there is
        overwritten by the next `flush`.

        Args:
            step: Steps that were done before: 0, or those of the checkpoint.

        Raises:
            UserError: if the file is none of ours; names its line.
        """
        rows = _read(self._path) if self._path else []
        for row in rows:
            if row["step"] <= step:
                self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a row, which is written by the next `flush`."""
        self.rows.append(dict(row))
        if self.measure in row:
            self._evaluations.append((row["step"], row[self.measure]))

    def flush(self) -> None:
        """Writes the file, whole or not at all; meant for checkpoints, not steps.

        Before the checkpoint rather than behind it: rows that it does not know of are
        dropped by `restart`, but rows that were never written do not come again.
        """
        if self._path is None:
            return
        if not self.rows:
            # Not an empty file, which could as well be one that was cut short.
            if tf.io.gfile.exists(self._path):
                tf.io.gfile.remove(self._path)
            return
        tf.io.gfile.makedirs(os.path.dirname(self._path))
        write_text(_to_text(self.rows), self._path)

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps of the rows that have a value, and the values."""
        rows = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = np.array(rows, np.float64).reshape(-1, 2).T
        return steps, values

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best evaluation, the first of equals; None without."""
        return max(self._evaluations, key=lambda scored: scored[1], default=None)

    @property
    def evaluations_since_best(self) -> int:
        """Evaluations since the best one, which were no better; 0 without any."""
        if not self._evaluations:
            return 0
        return len(self._evaluations) - 1 - self._evaluations.index(self.best)


def _to_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Returns the lines of the file, each with a checksum."""
    values = [{name: _plain(value) for name, value in row.items()} for row in rows]
    lines = [
        json.dumps({strict_json.CHECKSUM: _checksum(i, len(rows), row), **row})
        for i, row in enumerate(values)
    ]
    return "".join(f"{line}\n" for line in lines)


def _plain(value: float | np.generic) -> float | None:
    """Returns a number as JSON has it; null is not a number or infinite."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if math.isfinite(value) else None


def _checksum(index: int, count: int, row: Mapping[str, float | None]) -> str:
    # With the number of rows, so that no line is lost, doubled or moved unnoticed.
    return strict_json.checksum([index, count, row])


def _read(path: str) -> list[dict]:
    """Returns the rows of a file.

    Raises:
        UserError: if a line is damaged, or lines are missing; names the line.
    """
    if not tf.io.gfile.exists(path):
        return []
    content = text_files.read_content(path)
    if not content:
        raise UserError(f"{path} is empty; {_REMEDY}")
    text = strict_json.decode(content, path, text_files.MAX_BYTES)
    lines = text.removesuffix("\n").split("\n")
    rows = [_row(line, f"line {i} of {path}") for i, line in enumerate(lines, 1)]
    for i, row in enumerate(rows):
        if row.pop(strict_json.CHECKSUM, None) != _checksum(i, len(rows), row):
            raise UserError(
                f"{path} was changed after deeplab_tf wrote it, or comes from an "
                f"earlier version (line {i + 1}, or the number of lines); restore it, "
                f"or {_REMEDY}"
            )
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _row(line: str, where: str) -> dict:
    """Returns a row whose values have the right types.

    Raises:
        UserError: if the line is something else; names `where`.
    """
    row = strict_json.parse(line, where)
    if not isinstance(row, dict) or "step" not in row:
        raise UserError(
            f"{where} must be an object with a step, such as "
            f'{{"step": 10, "data_loss": 0.5}}; received {line[:80]!r}'
        )
    hints = {"step": int, strict_json.CHECKSUM: str}
    for name, value in row.items():
        hint = hints.get(name, float | None)
        strict_json.check(hint, value, f"{where}: {strict_json.describe(name)}")
    return row


def collapsed_class(
    predicted: np.ndarray, truth: np.ndarray, class_names: Sequence[str]
) -> str | None:
    """Returns a warning if nearly all predictions are one class, else None.

    Args:
        predicted: Pixels predicted as each class, `[num_classes]`.
        truth: Pixels of each class, `[num_classes]`; a class that is nearly all of
            them may be predicted everywhere.
        class_names: Names of the classes.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if not predicted.sum() or not truth.sum():
        return None
    largest = int(np.argmax(predicted))
    share = predicted[largest] / predicted.sum()
    true_share = truth[largest] / truth.sum()
    if share < _COLLAPSED or true_share >= _ONE_SIDED:
        return None
    return (
        f"{100 * share:.4g} % of the predictions are '{class_names[largest]}', "
        f"which is {100 * true_share:.2g} % of the truth: the predictions have "
        "collapsed; look at the learning rate, the labels and the class weights"
    )


def draw_curves(history: History, path: str) -> None:
    """Draws loss, measure and learning rate over the steps into a PNG.

    Args:
        history: What to draw; without rows nothing is drawn.
        path: Of the PNG.
    """
    if not history.rows:
        return
    draw_score = functools.partial(_draw_score, MEASURES[history.measure])
    drawings = [(_draw_loss, "data_loss", 3), (draw_score, history.measure, 3)]
    drawings.append((_draw_learning_rate, "learning_rate", 1))
    drawings = [d for d in drawings if len(history.values(d[1])[0])]
    heights = [height for *_, height in drawings]
    figure = Figure(figsize=(9, sum(heights) + 1), layout="constrained")
    all_axes = figure.subplots(
        len(drawings), sharex=True, squeeze=False, height_ratios=heights
    )
    for axes, (draw, name, _) in zip(all_axes[:, 0], drawings, strict=True):
        draw(axes, *history.values(name))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1, 0].set_xlabel("step")
    locator = MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    all_axes[-1, 0].xaxis.set_major_locator(locator)
    write_bytes(png_bytes(drawn(figure)), path)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Returns the course of noisy values, without regard to single outliers."""
    width = len(values) // 50 | 1
    medians = ndimage.median_filter(values, width, mode="reflect")
    return ndimage.gaussian_filter1d(medians, width / 3, mode="reflect")


def _marker(steps) -> str | None:
    """Returns the marker of a curve, which has none unless it is a point."""
    return "o" if len(steps) == 1 else None


def _draw_loss(axes, steps, losses) -> None:
    smoothed = _smoothed(losses)
    axes.plot(steps, losses, color=_LOSS, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed, color=_LOSS, linewidth=1.8, marker=_marker(steps))
    # A single step that went wrong would flatten everything else.
    axes.set_ylim(0, 1.3 * smoothed.max() or 1)
    axes.set_ylabel("data loss")


def _draw_score(name: str, axes, steps, scores) -> None:
    best = np.argmax(scores)
    axes.plot(steps, scores, color=_SCORE, linewidth=1.8, marker="o", markersize=4)
    axes.plot(
        steps[best],
        scores[best],
        color="tab:red",
        marker="*",
        markersize=15,
        linestyle="",
        label=f"best: {scores[best]:.2%} at step {steps[best]:.0f}",
    )
    axes.legend(loc="lower right")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel(name)


def _draw_learning_rate(axes, steps, rates) -> None:
    axes.plot(steps, rates, color=_LEARNING_RATE, marker=_marker(steps))
    axes.set_ylim(0, 1.1 * rates.max() or 1)
    axes.set_ylabel("learning rate")
