"""Reports on a training run: progress, summaries, curves and the best model."""

import contextlib
import dataclasses
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.config import EvalConfig, TrainConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.evaluation.results import write_metrics
from deeplab_tf.files.locks import verify_training_lock
from deeplab_tf.progress import ProgressBar
from deeplab_tf.training import resume
from deeplab_tf.training.checkpoint_files import BEST
from deeplab_tf.training.collapse import find_collapse
from deeplab_tf.training.curves import CURVES_FILE, draw_curves
from deeplab_tf.training.distribution import Worker
from deeplab_tf.training.health import Health
from deeplab_tf.training.history import MEASURES, History
from deeplab_tf.training.summaries import Summaries
from deeplab_tf.training.trackers import NONE, Tracker

# Number of steps to check for collapse together. The first ones are skipped, because
# every model starts by predicting the most frequent class.
_WINDOW = 100
_EXAMPLES = 4
# Time to measure the pace of steps.
_TIMED_SECONDS = 20
# Tolerance in mIoU for different seeds and hardware.
_MIOU_SPREAD = 0.04


@runtime_checkable
class Scoring(Protocol):
    """Protocol of `Validation`: how to score a model during training."""

    @property
    def dataset(self) -> Callable[[int, int], tf.data.Dataset]:
        """Function of `(worker, num_workers)` that returns a worker's images."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Measures to report; the first one selects the best model."""

    @property
    def make_scorer(self) -> Callable:
        """Function that returns a scorer; see `Validation.make_scorer`."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Settings for scoring a model during training.

    Attributes:
        dataset: Function of `(worker, num_workers)` that returns the images of a
            worker, as `load_dataset` does.
        config: The evaluation protocol.
        expected_miou: Maps steps to the mIoU expected there.
        measures: Keys of `history.MEASURES` to report; the first one selects the best
            model.
    """

    dataset: Callable[[int, int], tf.data.Dataset]
    config: EvalConfig = EvalConfig()
    expected_miou: Mapping[int, float] = dataclasses.field(default_factory=dict)
    measures: ClassVar[tuple[str, ...]] = ("miou",)

    def make_scorer(
        self, model: keras.Model, gallery: Gallery, shows_progress: bool
    ) -> Callable:
        """Returns a function from a dataset and `sum_over_workers` to metrics.

        The model's weights may change between calls; `gallery` collects example images.
        """
        evaluator = Evaluator(model, self.config, shows_progress)
        return functools.partial(evaluator.evaluate, gallery=gallery)


class Reporter:
    """Reports on a training run.

    Only the chief prints and writes; all of several workers print their health.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: DatasetInfo,
        worker: Worker,
        validation: Scoring | None,
    ):
        self._is_chief = is_chief = worker.is_chief
        self._config = config
        self._validation = validation
        self._info = info
        self._folder = config.train_logdir
        self._writes = is_chief and self._folder is not None
        self._measures = (validation or Validation).measures
        self._history = History(self._folder, self._measures[0])
        self._tracker = Tracker(
            config.tracker if is_chief else NONE,
            self._folder,
            dataclasses.asdict(config),
            self.print,
        )
        folder = self._folder if self._writes else None
        self._summaries = Summaries(folder, self._info, self._tracker)
        self._classes = np.zeros((3, info.num_classes))
        self._window_began = 0
        self._health = Health(worker)
        self._scorer = None
        self._gallery = Gallery(info.num_classes, info.ignore_label, first=_EXAMPLES)
        self._metrics = {}
        self._reported_at = (time.monotonic(), 0)
        self._timed_from: tuple[float, int] | None = None
        self._has_printed_time = False
        self._progress = ProgressBar(
            total=config.training_number_of_steps,
            desc="training",
            unit="step",
            disable=not is_chief,
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error) -> None:
        self._progress.close()
        with self._warn_if_unwritable():
            self._summaries.close()
        self._tracker.finish(has_failed=error[0] is not None)

    def restart(self, step: int, samples: int) -> None:
        """Starts, or resumes, reporting at `step` and restarts the speed measurement.

        `samples` is the number of samples that training has consumed.
        """
        # Not `update`, which would count the earlier steps in the speed.
        bar = self._progress
        bar.n = bar.initial = bar.last_print_n = step
        bar.refresh()
        self._reported_at = (time.monotonic(), samples)
        self._window_began = step
        self._history.restart(step)
        self._summaries.restart(step)
        self._tracker.start()

    def log_steps(self, step: int, rows: np.ndarray, classes, samples: int) -> None:
        """Reports the steps of a host call.

        Args:
            step: Steps done before the call.
            rows: Metrics of each step, the public ones first, `[steps, n]`.
            classes: Class counts `[3, num_classes]`; see `count_classes`.
            samples: Samples consumed so far.
        """
        self._progress.update(len(rows))
        health = self._health.describe(step + len(rows), samples)
        if health:
            self._write(health)
        self._print_expected_time(step + len(rows))
        self._warn_of_collapse(step + len(rows), classes)
        numbered = enumerate(rows.tolist(), step + 1)
        due = [row for row in numbered if row[0] % self._config.log_steps == 0]
        if not due:
            return
        now, (before, samples_before) = time.monotonic(), self._reported_at
        speed = (samples - samples_before) / max(now - before, 1e-9)
        self._reported_at = (now, samples)
        for number, row in due:
            self._log(number, row, speed)

    def _print_expected_time(self, step: int) -> None:
        """Prints the expected time once, after the first steps."""
        now = time.monotonic()
        if self._timed_from is None:
            # The first call compiles, which takes much longer.
            self._timed_from = (now, step)
            return
        before, first = self._timed_from
        if self._has_printed_time or now - before < _TIMED_SECONDS:
            return
        self._has_printed_time = True
        pace = (now - before) / max(1, step - first)
        seconds = pace * (self._config.training_number_of_steps - step)
        left = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
        self.print(
            f"step {step}: {pace:.2f} s per step, about {left} left without evaluations"
        )

    def _log(self, step: int, row: list[float], speed: float) -> None:
        """Writes the metrics of a step to progress bar, history and summaries."""
        data_loss, regularization, learning_rate, *_ = row
        self._progress.set_postfix(
            loss=f"{data_loss:.3f}", lr=f"{learning_rate:.2g}", img_per_s=f"{speed:.1f}"
        )
        values = {"data_loss": data_loss, "learning_rate": learning_rate}
        self._history.append({"step": step, **values})
        values |= {
            "regularization_loss": regularization,
            "total_loss": data_loss + regularization,
            "images_per_second": speed,
        }
        self._summaries.write_scalars(
            step, {f"train/{k}": v for k, v in values.items()}
        )

    def _warn_of_collapse(self, step: int, classes) -> None:
        self._classes += classes
        if step - self._window_began < _WINDOW:
            return
        found = find_collapse(*self._classes[:2], self._info.class_names)
        if found and self._window_began:
            self.print(f"warning: step {step}: {found}")
        self._classes[:], self._window_began = 0, step

    def evaluate(
        self, step: int, model: keras.Model, worker: Worker, sum_over_workers: Callable
    ) -> bool:
        """Scores the model after `step` steps; returns whether it is the best so far.

        `sum_over_workers` sums an int64 array over all workers.
        """
        validation = self._validation
        if self._scorer is None:
            self._scorer = validation.make_scorer(model, self._gallery, self._is_chief)
        dataset = validation.dataset(worker.index, worker.count)
        metrics = self._scorer(dataset, sum_over_workers)
        metrics["step"] = step
        self._metrics = metrics
        best = self._history.best
        is_best = best is None or metrics[self._history.measure] > best[1]
        scores = {name: metrics[name] for name in self._measures}
        self._history.append({"step": step, **scores})
        if "confusion_matrix" in metrics:
            self._log_classes(step, metrics)
        else:
            self._summaries.write_scalars(
                step, {f"eval/{k}": v for k, v in scores.items()}
            )
        # Matplotlib figures are reference cycles, which Python collects late.
        gc.collect()
        # The evaluation does not count in the training speed and the expected time.
        self._timed_from = None
        self._reported_at = (time.monotonic(), self._reported_at[1])
        parts = [f"{MEASURES[name]} {score:.4f}" for name, score in scores.items()]
        parts += ["the best so far"] if is_best else []
        if "miou" in metrics and step in validation.expected_miou:
            parts.append(_compare_miou(metrics["miou"], validation.expected_miou[step]))
        self.print(f"step {step}: {', '.join(parts)}")
        return is_best

    def _log_classes(self, step: int, metrics: dict) -> None:
        """Writes class scores, and warns if nearly all predictions are of one class."""
        self._summaries.write_evaluation(step, metrics, self._gallery.first)
        counts = np.array(metrics["confusion_matrix"])
        found = find_collapse(counts.sum(0), counts.sum(1), self._info.class_names)
        if found:
            self.print(f"warning: step {step}: {found}")

    @property
    def metrics(self) -> dict:
        """Metrics of the last evaluation; empty before the first."""
        return self._metrics

    def has_evaluated(self, step: int) -> bool:
        """Returns whether the model was scored at a step; the same on all workers."""
        return step in self._history.values(self._history.measure)[0]

    @property
    def evaluations_since_best(self) -> int:
        """Number of evaluations since the best one; the same on all workers."""
        return self._history.evaluations_since_best

    def write_best_metrics(self) -> None:
        """Writes the metrics and the experiment next to the best checkpoint."""
        if not self._writes:
            return
        folder = os.path.join(self._folder, BEST)
        experiment = resume.read_experiment(self._folder)
        if experiment is not None:
            resume.write_experiment(experiment, folder)
        # Last: a run killed before this evaluates and saves the best model again.
        write_metrics(self._metrics, folder)

    def flush(self) -> None:
        """Writes history and summaries; call this before saving a checkpoint.

        A failure is only a warning, because the checkpoint matters more. Raises
        `UserError` if the folder was removed or taken over by another training run.
        """
        if not self._writes:
            return
        verify_training_lock(self._folder)
        with self._warn_if_unwritable():
            self._history.flush()
            self._summaries.flush()

    @contextlib.contextmanager
    def _warn_if_unwritable(self) -> Iterator[None]:
        """Turns errors of writing files into warnings."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            self.print(f"warning: could not write reports to {self._folder}: {reason}")

    def finish(self) -> None:
        """Draws the curves, unless another training run took over the folder."""
        if self._writes:
            verify_training_lock(self._folder)
            draw_curves(self._history, os.path.join(self._folder, CURVES_FILE))

    def print(self, text: str) -> None:
        """Prints a line above the progress bar of the chief."""
        if self._is_chief:
            self._write(text)

    def _write(self, text: str) -> None:
        # A closed terminal must not keep the run from saving.
        with contextlib.suppress(OSError):
            self._progress.write(text, file=sys.stderr)


def _compare_miou(miou: float, expected: float) -> str:
    """Describes how a score compares with the expected mIoU."""
    if miou >= expected - _MIOU_SPREAD:
        return f"as expected ({expected:.2f})"
    return (
        f"warning: expected {expected:.2f} at this step; check data and labels "
        "(python -m deeplab_tf.data.doctor)"
    )
