"""What a training tells: progress, summaries, curves, warnings, the best model."""

import contextlib
import dataclasses
import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from deeplab_tf.config import EvalConfig, TrainConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.evaluation.evaluator import Evaluator, write_metrics
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.files.locks import verify_training_lock
from deeplab_tf.training import resume
from deeplab_tf.training.distribution import Worker
from deeplab_tf.training.history import (
    CURVES_FILE,
    MEASURES,
    History,
    collapsed_class,
    draw_curves,
)
from deeplab_tf.training.summaries import Summaries

# Steps whose predictions are looked at together. The first ones are let go: every model
# begins by predicting what is most frequent.
_WINDOW = 100
_EXAMPLES = 4
# How far a run may be below what others gave, by seed and hardware.
_CANARY_SPREAD = 0.04


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a model is scored on while it is trained.

    Attributes:
        dataset: Function of `(worker, num_workers)` that gives the images of a
            worker, as `load_dataset` does.
        config: How to look at the images.
        canaries: What is to be expected after some steps, by their number.
        measures: Names in `history.MEASURES` of what is told; the first one decides
            which model is the best.
    """

    dataset: Callable[[int, int], tf.data.Dataset]
    config: EvalConfig = EvalConfig()
    canaries: Mapping[int, float] = dataclasses.field(default_factory=dict)
    measures: ClassVar[tuple[str, ...]] = ("miou",)

    def scorer(
        self, model: keras.Model, gallery: Gallery, shows_progress: bool
    ) -> Callable:
        """Returns what scores the model again and again.

        Args:
            model: The model; its weights may change in between.
            gallery: Keeps images, where they can be shown.
            shows_progress: Whether this process shows a progress bar.

        Returns:
            A function of a dataset and of another one, which sums an array over all
            workers, that returns the metrics.
        """
        evaluator = Evaluator(model, self.config, shows_progress)
        return functools.partial(evaluator.evaluate, gallery=gallery)


class Reporter:
    """Tells how a training goes; one worker of several writes.

    Args:
        config: How the model is trained, `train_logdir` included.
        info: Names and colours of the classes.
        is_chief: Whether this process shows and writes.
        validation: What the model is scored on, if it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: DatasetInfo,
        is_chief: bool,
        validation: Validation | None,
    ):
        self._config = config
        self._validation = validation
        self._info = info
        self._folder = config.train_logdir
        self._is_chief = is_chief
        self._writes = is_chief and self._folder is not None
        self._measures = (validation or Validation).measures
        self._history = History(self._folder, self._measures[0])
        self._summaries = Summaries(self._folder if self._writes else None, self._info)
        self._classes = np.zeros((3, info.num_classes))
        self._window_began = 0
        self._scorer = None
        self._gallery = Gallery(info.num_classes, info.ignore_label, first=_EXAMPLES)
        self._metrics = {}
        self._told_at = (time.monotonic(), 0)
        self._progress = tqdm(
            total=config.training_number_of_steps,
            desc="training",
            unit="step",
            disable=not is_chief,
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error) -> None:
        self._progress.close()
        with self._unwritable_is_reported():
            self._summaries.close()

    def restart(self, step: int, samples: int) -> None:
        """Begins where the training does.

        Args:
            step: Steps that were done before.
            samples: Samples that they took.
        """
        # Not `update`, by which all of them would be of this second.
        bar = self._progress
        bar.n = bar.initial = bar.last_print_n = step
        bar.refresh()
        self._told_at = (time.monotonic(), samples)
        self._window_began = step
        self._history.restart(step)
        self._summaries.restart(step)

    def trained(self, step: int, told: np.ndarray, classes, samples: int) -> None:
        """Takes in the steps of a host call.

        Args:
            step: Steps that were done before them.
            told: `[steps, 4]`: data loss, regularisation loss, learning rate, and more.
            classes: `[3, num_classes]`: pixels predicted as, being and rightly
                predicted as each class.
            samples: Samples that the training took up to now.
        """
        self._progress.update(len(told))
        self._watch_classes(step + len(told), classes)
        rows = list(enumerate(told.tolist(), step + 1))
        due = [row for row in rows if row[0] % self._config.log_steps == 0]
        if not due:
            return
        now, (before, samples_before) = time.monotonic(), self._told_at
        speed = (samples - samples_before) / max(now - before, 1e-9)
        self._told_at = (now, samples)
        for number, row in due:
            self._tell(number, row, speed)

    def _tell(self, step: int, row: list[float], speed: float) -> None:
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
        self._summaries.scalars(step, {f"train/{k}": v for k, v in values.items()})

    def _watch_classes(self, step: int, classes) -> None:
        """Warns when the predictions of a whole window are of one class."""
        self._classes += classes
        if step - self._window_began < _WINDOW:
            return
        found = collapsed_class(*self._classes[:2], self._info.class_names)
        if found and self._window_began:
            self.say(f"warning: step {step}: {found}")
        self._classes[:], self._window_began = 0, step

    def evaluate(
        self, step: int, model: keras.Model, worker: Worker, total: Callable
    ) -> bool:
        """Scores the model; returns whether it is the best so far.

        Args:
            step: Steps that were done.
            model: The model as it is to be scored.
            worker: This process among those that score together.
            total: Sums an int64 array over all workers.
        """
        validation = self._validation
        if self._scorer is None:
            self._scorer = validation.scorer(model, self._gallery, self._is_chief)
        dataset = validation.dataset(worker.index, worker.count)
        metrics = self._scorer(dataset, total)
        metrics["step"] = step
        self._metrics = metrics
        best = self._history.best
        is_best = best is None or metrics[self._history.measure] > best[1]
        scores = {name: metrics[name] for name in self._measures}
        self._history.append({"step": step, **scores})
        if "confusion_matrix" in metrics:
            self._show_classes(step, metrics)
        else:
            self._summaries.scalars(step, {f"eval/{k}": v for k, v in scores.items()})
        # Figures are full of cycles, which Python leaves alone for many evaluations.
        gc.collect()
        # The time of an evaluation is none of the training's.
        self._told_at = (time.monotonic(), self._told_at[1])
        told = [f"{MEASURES[name]} {score:.4f}" for name, score in scores.items()]
        told += ["the best so far"] if is_best else []
        if "miou" in metrics and step in validation.canaries:
            told.append(_canary(metrics["miou"], validation.canaries[step]))
        self.say(f"step {step}: {', '.join(told)}")
        return is_best

    def _show_classes(self, step: int, metrics: dict) -> None:
        """Shows what became of each class, and warns when all became one."""
        self._summaries.evaluation(step, metrics, self._gallery.first)
        counts = np.array(metrics["confusion_matrix"])
        found = collapsed_class(counts.sum(0), counts.sum(1), self._info.class_names)
        if found:
            self.say(f"warning: step {step}: {found}")

    def has_evaluated(self, step: int) -> bool:
        """Whether the model was scored at a step; the same for all workers."""
        return step in self._history.values(self._history.measure)[0]

    @property
    def evaluations_since_best(self) -> int:
        """Evaluations since the best one; the same for all workers."""
        return self._history.evaluations_since_best

    def keep_best(self) -> None:
        """Writes the metrics of the best checkpoint, and its experiment, beside it."""
        if not self._writes:
            return
        folder = os.path.join(self._folder, resume.BEST)
        experiment = resume.read_experiment(self._folder)
        if experiment is not None:
            resume.write_experiment(experiment, folder)
        # The last: killed before it, a training that goes on keeps the best anew.
        write_metrics(self._metrics, folder)

    def flush(self) -> None:
        """Writes history and summaries; before a checkpoint, which counts on them.

        If that fails there is only a warning, for the checkpoint matters more.

        Raises:
            UserError: if the folder was removed or taken over by another training.
        """
        if not self._writes:
            return
        verify_training_lock(self._folder)
        with self._unwritable_is_reported():
            self._history.flush()
            self._summaries.flush()

    @contextlib.contextmanager
    def _unwritable_is_reported(self) -> Iterator[None]:
        """Warns instead of raising what writing a file raises."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            self.say(f"warning: could not write reports to {self._folder}: {reason}")

    def finish(self) -> None:
        """Draws the curves of the complete training.

        Raises:
            UserError: if the folder was removed or taken over by another training.
        """
        if self._writes:
            verify_training_lock(self._folder)
            draw_curves(self._history, os.path.join(self._folder, CURVES_FILE))

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        # A terminal that was closed must not keep a training from saving.
        with contextlib.suppress(OSError):
            if not self._progress.disable:
                self._progress.write(text, file=sys.stderr)


def _canary(miou: float, expected: float) -> str:
    """Returns how a score compares with what a preset gave at this step before."""
    if miou >= expected - _CANARY_SPREAD:
        return f"as expected ({expected:.2f})"
    return (
        f"warning: {expected:.2f} was to be expected here; look at data and labels "
        "(python -m deeplab_tf.data.doctor)"
    )
