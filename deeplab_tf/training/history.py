"""The losses and scores of a training run in `history.jsonl`, one line per report."""

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
# Score to its name in reports.
MEASURES = {"miou": "mIoU", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}


class History:
    """The rows of `history.jsonl`, kept in memory until `flush`.

    Each row has a `step`. Rows of training reports also have `data_loss`,
    `learning_rate` and more; rows of evaluations have the measures.

    Args:
        folder: The `train_logdir`; None writes no file.
        measure: Key of `MEASURES` that selects the best evaluation.
    """

    def __init__(self, folder: str | None, measure: str = "miou"):
        self.measure = measure
        self.rows = []
        self._evaluations = []
        self._path = folder and os.path.join(folder, HISTORY_FILE)

    def restart(self, step: int) -> None:
        """Reads the rows up to `step` from the file; later steps are run again.

        Call it once, before `append`; the next `flush` overwrites the file. Raises
        `UserError` if a line of the file is not valid.
        """
        rows = _read(self._path) if self._path else []
        for row in rows:
            if row["step"] <= step:
                self.append(row)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a row, which the next `flush` writes."""
        self.rows.append(dict(row))
        if self.measure in row:
            self._evaluations.append((row["step"], row[self.measure]))

    def flush(self) -> None:
        """Writes the file atomically.

        Call it before saving a checkpoint: `restart` drops rows of later steps, but
        rows that were never written are lost.
        """
        if self._path is None:
            return
        if not self.rows:
            # An empty file would look like a truncated one.
            if tf.io.gfile.exists(self._path):
                tf.io.gfile.remove(self._path)
            return
        tf.io.gfile.makedirs(os.path.dirname(self._path))
        write_text(_to_text(self.rows), self._path)

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps with a value called `name`, and the values."""
        rows = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = np.array(rows, np.float64).reshape(-1, 2).T
        return steps, values

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best evaluation, the first of equal ones, or None."""
        return max(self._evaluations, key=lambda scored: scored[1], default=None)

    @property
    def evaluations_since_best(self) -> int:
        """Number of evaluations since the best one."""
        if not self._evaluations:
            return 0
        return len(self._evaluations) - 1 - self._evaluations.index(self.best)


def _to_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Returns the lines of the file, each with a checksum."""
    values = [{name: _to_json(value) for name, value in row.items()} for row in rows]
    lines = [
        json.dumps({strict_json.CHECKSUM: _checksum(i, len(rows), row), **row})
        for i, row in enumerate(values)
    ]
    return "".join(f"{line}\n" for line in lines)


def _to_json(value: float | np.generic) -> float | None:
    """Returns a number for JSON, null if it is not finite."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if math.isfinite(value) else None


def _checksum(index: int, count: int, row: Mapping[str, float | None]) -> str:
    # Index and count reveal lines that were lost, duplicated or moved.
    return strict_json.checksum([index, count, row])


def _read(path: str) -> list[dict]:
    """Returns the rows of a file; an error names the damaged or missing line."""
    if not tf.io.gfile.exists(path):
        return []
    content = text_files.read_content(path)
    if not content:
        raise UserError(f"{path} is empty; {_REMEDY}")
    text = strict_json.decode_utf8(content, path, text_files.MAX_BYTES)
    lines = text.removesuffix("\n").split("\n")
    rows = [_parse_row(line, f"line {i} of {path}") for i, line in enumerate(lines, 1)]
    for i, row in enumerate(rows):
        if row.pop(strict_json.CHECKSUM, None) != _checksum(i, len(rows), row):
            raise UserError(
                f"{path} was changed after deeplab_tf wrote it, or comes from an "
                f"earlier version (line {i + 1}, or the number of lines); restore it, "
                f"or {_REMEDY}"
            )
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _parse_row(line: str, where: str) -> dict:
    """Returns a row after checking the types of its values."""
    row = strict_json.parse(line, where)
    if not isinstance(row, dict) or "step" not in row:
        raise UserError(
            f"{where} must be an object with a step, such as "
            f'{{"step": 10, "data_loss": 0.5}}; received {line[:80]!r}'
        )
    hints = {"step": int, strict_json.CHECKSUM: str}
    for name, value in row.items():
        hint = hints.get(name, float | None)
        strict_json.convert(hint, value, f"{where}: {strict_json.describe(name)}")
    return row
