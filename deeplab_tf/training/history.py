"""The losses and scores of a training, in a file of one line per report."""

import json
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files
from deeplab_tf.files.outputs import write_text

HISTORY_FILE = "history.jsonl"
_REMEDY = "remove it to resume without the history"
# The scores of evaluations, and how they are reported.
MEASURES = {"miou": "mIoU", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}


class History:
    """The rows of `history.jsonl`, in memory until they are flushed.

    Args:
        folder: Folder of the file, the `train_logdir`; None keeps it in memory.
        measure: Name in `MEASURES` of the score that decides the best evaluation.

    Attributes:
        measure: As given.
        rows: In order. Each has its `step`; a report of the training also `data_loss`,
            `learning_rate` and more, an evaluation the measure.
    """

    def __init__(self, folder: str | None, measure: str = "miou"):
        self.measure = measure
        self.rows = []
        self._evaluations = []
        self._path = folder and os.path.join(folder, HISTORY_FILE)

    def restart(self, step: int) -> None:
        """Reads the rows up to a step from the file; later steps are done again.

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
        """Writes the file atomically; meant for checkpoints, not steps.

        Before the checkpoint rather than after it: `restart` drops rows of later steps,
        but rows that were never written do not come again.
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
