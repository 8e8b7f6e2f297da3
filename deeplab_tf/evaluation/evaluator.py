"""Evaluates a model on a dataset and computes the metrics of `metrics.json`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.arguments import Elements, check_arguments
from deeplab_tf.config import EvalConfig
from deeplab_tf.data.reader import count_batches, iterate_batches, translate_data_errors
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.evaluation import confusion
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.evaluation.mean_iou import count_confusions
from deeplab_tf.inference import Predictor, compile_graph
from deeplab_tf.progress import ProgressBar
from deeplab_tf.windows import translate_limit_errors

_MIB = 1 << 20
_BATCHES = Elements("batches of images and labels, such as those of load_dataset")


@runtime_checkable
class ExportedModel(Protocol):
    """A model that is not a `keras.Model`, such as one from `load_artefact`."""

    num_classes: int | None
    protocol: dict
    labels: Callable


class _Batch(NamedTuple):
    """A batch of images of one size, with predictions.

    Attributes:
        images: `[batch, height, width, channels]`.
        labels: `[batch, height, width, 1]`.
        names: Strings `[batch]`.
        predictions: Class ids `[batch, height, width]`.
        counts: Confusion matrix, int64 `[num_classes, num_classes]`.
        confidences: Probabilities of the predicted classes; None if not needed.
    """

    images: tf.Tensor
    labels: tf.Tensor
    names: tf.Tensor
    predictions: tf.Tensor
    counts: tf.Tensor
    confidences: tf.Tensor | None = None


class Counts(NamedTuple):
    """What `Evaluator.count` counted; the counts of parts can be added.

    Attributes:
        images: Images, and those larger than `eval_crop_size`, int64 `[2]`.
        matrix: Confusion matrix, int64 `[num_classes, num_classes]`.
    """

    images: np.ndarray
    matrix: np.ndarray


class Evaluator:
    """Evaluates a model repeatedly with one compiled step, for example in training.

    A model built under `tf.distribute.MirroredStrategy` is evaluated on all of its
    replicas, which receive different batches.

    Args:
        model: A model from `build_model`, or an exported one: an object with `labels`,
            `num_classes`, `protocol` and, for confidences, `probabilities` like those
            of `Predictor`.
        config: The inference protocol and the ignored label.
        shows_progress: Whether to show a progress bar.
    """

    @check_arguments()
    def __init__(
        self,
        model: keras.Model | ExportedModel,
        config: EvalConfig = EvalConfig(),
        shows_progress: bool = True,
    ):
        self._config = config
        self._shows_progress = shows_progress
        self._strategy: tf.distribute.Strategy | None = None
        self._has_noted_sizes = False
        self._predictor: Any = model
        self._compiled_step = self._step
        if isinstance(model, keras.Model):
            self._predictor = make_predictor(model, config)
            self._compiled_step = compile_graph(self._step, reduce_retracing=True)
            # Only models on the TensorFlow backend have a strategy.
            strategy = getattr(model, "distribute_strategy", None)
            if isinstance(strategy, tf.distribute.MirroredStrategy):
                self._strategy = strategy
                self._compiled_replicas = tf.function(
                    functools.partial(self._step_on_replicas, self._strategy),
                    reduce_retracing=True,
                    autograph=False,
                )

    @property
    def num_classes(self) -> int:
        """Number of classes of the model."""
        return self._predictor.num_classes

    def _step(
        self, images: tf.Tensor, labels: tf.Tensor, confident: bool
    ) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]:
        """Returns predictions, confidences (None if not `confident`) and counts."""
        confidences = None
        if not isinstance(self._predictor, Predictor):
            predictions, confidences = self._predict_exported(images, confident)
        elif confident:
            predictions, confidences = self._predictor.labels_and_confidences(images)
        else:
            predictions = self._predictor.labels(images)
        counts = count_confusions(
            labels, predictions, self.num_classes, self._config.ignore_label
        )
        return predictions, confidences, counts

    def _predict_exported(
        self, images: tf.Tensor, confident: bool
    ) -> tuple[np.ndarray, tf.Tensor | None]:
        """Returns labels and, if `confident`, confidences of an exported model.

        Raises UserError if the labels have the wrong shape or values.
        """
        predictions = np.asarray(self._predictor.labels(images))
        if predictions.shape != tuple(images.shape[:3]):
            raise UserError(
                f"the model predicted labels of shape {list(predictions.shape)} for "
                f"images of shape {list(images.shape)}"
            )
        if not 0 <= predictions.min() <= predictions.max() < self.num_classes:
            raise UserError(
                f"the model predicted labels from {predictions.min()} to "
                f"{predictions.max()}; its {self.num_classes} classes are "
                f"0..{self.num_classes - 1}"
            )
        if not confident:
            return predictions, None
        return predictions, tf.reduce_max(self._predictor.probabilities(images), -1)

    @check_arguments(dataset=_BATCHES)
    def evaluate(
        self,
        dataset: Iterable,
        total: Callable[[np.ndarray], np.ndarray] | None = None,
        measures: Sequence = (),
        gallery: Gallery | None = None,
    ) -> dict:
        """Evaluates the model on a dataset, at the original image sizes.

        Args:
            dataset: Batches of images `[batch, height, width, channels]`, RGB 0..255,
                labels `[batch, height, width, 1]` and optionally names. With several
                workers, the part for this worker; with several replicas, it must be a
                `tf.data.Dataset`.
            total: Sums an int64 array over all workers; None if there is only one.
            measures: Additional measures to update, such as `TrimapCurve`.
            gallery: Gallery to update.

        Returns:
            `images`, `miou`, `pixel_accuracy`, `frequency_weighted_iou`,
            `iou_per_class` and `accuracy_per_class` (None for classes without ground
            truth), `f_score_per_class` (None if they are not predicted either),
            `confusion_matrix` (rows are the ground truth) and `protocol`. As in the
            official code, `miou` counts classes that are only predicted with an IoU of
            0.

        Raises:
            UserError: if there are no pixels to score.
        """
        counts = self.count(dataset, measures, gallery)
        if total is not None:
            counts = Counts(*(np.asarray(total(part)) for part in counts))
        return self.compute_metrics(counts)

    def count(
        self,
        dataset: Iterable,
        measures: Sequence = (),
        gallery: Gallery | None = None,
    ) -> Counts:
        """Evaluates the model on a part of a dataset; see `evaluate`.

        The counts of parts, and those of `measures`, can be added.
        """
        for collector in (*measures, *([gallery] if gallery else [])):
            collector.reset()
        images = np.zeros(2, np.int64)
        matrix = np.zeros((self.num_classes,) * 2, np.int64)
        confident = any(measure.needs_confidences for measure in measures)
        hidden = not self._shows_progress
        bar = {"total": count_batches(dataset), "unit": "batch", "disable": hidden}
        with ProgressBar(desc="evaluating", **bar) as progress:
            for batch in self._score_batches(dataset, confident):
                matrix += np.asarray(batch.counts)
                exceeds = _is_larger(
                    batch.images.shape[1:3], self._config.eval_crop_size
                )
                _update_measures(batch, int(images[0]), measures, gallery)
                images += len(batch.images) * np.array([1, exceeds])
                progress.update()
        return Counts(images, matrix)

    def _score_batches(self, dataset: Iterable, confident: bool) -> Iterator[_Batch]:
        """Yields each batch of a dataset with its predictions and counts."""
        if self._strategy is not None:
            yield from self._score_by_replicas(self._strategy, dataset, confident)
            return
        self._trace_any_size(dataset, confident)
        for images, labels, *names in iterate_batches(dataset):
            with translate_limit_errors():
                predictions, confidences, counts = self._compiled_step(
                    images, labels, confident
                )
            names = names[0] if names else _make_empty_names(images)
            yield _Batch(images, labels, names, predictions, counts, confidences)

    def _trace_any_size(self, dataset: Iterable, confident: bool) -> None:
        """Traces the step for all sizes of a dataset at once.

        Otherwise, it is traced for the first size and again when another follows.
        """
        spec = getattr(dataset, "element_spec", None)
        trace = getattr(self._compiled_step, "get_concrete_function", None)
        if trace is None or not isinstance(spec, tuple):
            return
        # A model of one size refuses other sizes only if they are known.
        has_any_size = None in self._predictor.network.input.shape[1:3]
        if has_any_size and not tf.config.functions_run_eagerly():
            with translate_limit_errors():
                trace(*spec[:2], confident)

    def _score_by_replicas(
        self,
        strategy: tf.distribute.Strategy,
        dataset: tf.data.Dataset,
        confident: bool,
    ) -> Iterator[_Batch]:
        """Yields each batch with its predictions, made by replicas in parallel."""
        endless = _append_dummy_batches(dataset, self._config.ignore_label)
        distributed = strategy.distribute_datasets_from_function(lambda _: endless)
        iterator, is_real = iter(distributed), True
        while is_real:
            with translate_limit_errors(), translate_data_errors():
                replicas = self._compiled_replicas(iterator, confident)
            for is_real, *parts in zip(*replicas, strict=True):
                if not is_real:
                    return
                yield _Batch(*parts)

    def _step_on_replicas(
        self, strategy: tf.distribute.Strategy, iterator: Iterator, confident: bool
    ) -> list:
        """Evaluates one batch per replica; returns one list per result, by replica."""

        def step(images: tf.Tensor, labels: tf.Tensor) -> tuple:
            predictions, confidences, counts = self._step(images, labels, confident)
            return predictions, counts, *([confidences] if confident else [])

        is_real, images, labels, names = next(iterator)
        results = strategy.run(step, args=(images, labels))
        parts = (is_real, images, labels, names, *results)
        return [strategy.experimental_local_results(part) for part in parts]

    def compute_metrics(self, counts: Counts) -> dict:
        """Returns the metrics of `evaluate` for the counts of a dataset."""
        (num_images, larger), matrix = counts.images.tolist(), counts.matrix
        if larger and not self._has_noted_sizes:
            number = pluralize(larger, "image(s) (exceeds|exceed)")
            print(f"note: {number} eval_crop_size, which was enlarged to fit")
            self._has_noted_sizes = True
        if matrix.sum() == 0:
            raise UserError(
                f"no pixels to score: the labels of all {num_images} images are "
                f"ignored or invalid; class labels are 0..{len(matrix) - 1}"
            )
        return {
            "images": num_images,
            "miou": confusion.mean_iou(matrix),
            "pixel_accuracy": confusion.pixel_accuracy(matrix),
            "frequency_weighted_iou": confusion.frequency_weighted_iou(matrix),
            "iou_per_class": _replace_nan(confusion.iou_per_class(matrix)),
            "accuracy_per_class": _replace_nan(confusion.accuracy_per_class(matrix)),
            "f_score_per_class": _replace_nan(confusion.f_score_per_class(matrix)),
            "confusion_matrix": matrix.tolist(),
            "protocol": self._describe_protocol(),
        }

    def _describe_protocol(self) -> dict:
        config = dataclasses.asdict(self._config)
        if not isinstance(self._predictor, Predictor):
            # An export has a fixed inference protocol.
            config = {k: config[k] for k in ("eval_batch_size", "ignore_label")}
        return self._predictor.protocol | config


def make_predictor(model: keras.Model, config: EvalConfig) -> Predictor:
    """Makes a predictor with the inference protocol of a config."""
    limit = config.memory_limit_mb
    return Predictor(
        model,
        config.eval_scales,
        config.add_flipped_images,
        config.eval_crop_size,
        config.window_size,
        None if limit is None else limit * _MIB,
        config.prediction_with_upsampled_logits,
    )


def _update_measures(
    batch: _Batch, first: int, measures: Sequence, gallery: Gallery | None
) -> None:
    """Updates measures and gallery; images without a name are numbered from `first`."""
    if not measures and gallery is None:
        return
    images, labels, names, predictions = map(np.asarray, batch[:4])
    confidences: Sequence | np.ndarray = [None] * len(images)
    if batch.confidences is not None:
        confidences = np.asarray(batch.confidences)
    for i, (prediction, name) in enumerate(zip(predictions, names, strict=True)):
        truth = labels[i].reshape(prediction.shape)
        for measure in measures:
            measure.update(truth, prediction, confidences[i])
        if gallery is not None:
            text = name.decode(errors="replace") if isinstance(name, bytes) else name
            gallery.update(text or f"image {first + i}", images[i], truth, prediction)


def _append_dummy_batches(
    dataset: tf.data.Dataset, ignore_label: int
) -> tf.data.Dataset:
    """Appends endless dummy batches, so that each replica always gets a batch.

    Prepends a bool to each element, which is true for batches of the dataset.
    """

    @tf.autograph.experimental.do_not_convert
    def real(images: tf.Tensor, labels: tf.Tensor, *names: tf.Tensor) -> tuple:
        return True, images, labels, names[0] if names else _make_empty_names(images)

    channels = dataset.element_spec[0].shape[-1]
    image, label = tf.zeros([1, 1, 1, channels]), tf.fill([1, 1, 1, 1], ignore_label)
    specs = dataset.element_spec
    image, label = tf.cast(image, specs[0].dtype), tf.cast(label, specs[1].dtype)
    dummy = tf.data.Dataset.from_tensors((False, image, label, [""]))
    return dataset.map(real).concatenate(dummy.repeat())


def _make_empty_names(images: tf.Tensor) -> tf.Tensor:
    return tf.fill([tf.shape(images)[0]], "")


def _replace_nan(scores: np.ndarray) -> list[float | None]:
    return [None if np.isnan(score) else float(score) for score in scores]


def evaluate(
    model: keras.Model | ExportedModel,
    dataset: Iterable,
    config: EvalConfig = EvalConfig(),
) -> dict:
    """Evaluates a model on a dataset, at the original image sizes.

    Args:
        model: A model from `build_model` or `load_artefact`.
        dataset: Batches of images `[batch, height, width, 3]`, RGB 0..255, and
            labels `[batch, height, width, 1]`.
        config: The inference protocol and the ignored label.

    Returns:
        The metrics; see `Evaluator.evaluate`.
    """
    return Evaluator(model, config).evaluate(dataset)


def _is_larger(size: tuple[int, int], crop_size: tuple[int, int] | None) -> bool:
    height, width = crop_size or size
    return size[0] > height or size[1] > width
