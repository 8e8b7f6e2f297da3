"""What the workers of `transforms` do with a model."""

from collections.abc import Iterable, Sequence

import numpy as np

from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.data.pipeline import scale_to_255
from deeplab_tf.data.sources import resolve_info
from deeplab_tf.errors import UserError, one_line
from deeplab_tf.evaluation.evaluator import Counts, Evaluator
from deeplab_tf.evaluation.measures import make_measures
from deeplab_tf.evaluation.results import Split, add_details
from deeplab_tf.images import inputs
from deeplab_tf.labelling.batches import batch_by_size
from deeplab_tf.serving.formats import load_artefact


class Labeler:
    """Labels encoded images with an exported model; see `transforms.LabelHandler`."""

    def __init__(self, model: str):
        self._model = load_artefact(model)
        info = self._model.info
        self._format = self._model.channels or 3, info.max_value if info else 255

    def label(self, batch: Sequence[tuple[str, bytes]]) -> list[np.ndarray | str]:
        """Returns the labels of each image, or the reason why it has none."""
        found: list[np.ndarray | str] = []
        images = []
        for i, (name, content) in enumerate(batch):
            found.append("")
            try:
                images.append((i, inputs.decode_image(name, content, *self._format)))
            except UserError as error:
                found[i] = one_line(error)
        images.sort(key=lambda pair: pair[1].shape)
        for group in batch_by_size(images, len(batch)):
            numbers, pixels = zip(*group, strict=True)
            for i, labels in zip(numbers, self._predict(np.stack(pixels)), strict=True):
                found[i] = labels
        return found

    def _predict(self, images: np.ndarray) -> Iterable[np.ndarray | str]:
        """Returns the labels of images of one size, or the same error for each."""
        info = self._model.info
        try:
            labels = self._model.labels(scale_to_255(images, info) if info else images)
        except UserError as error:  # for example too large for a TFLite file
            return [one_line(error)] * len(images)
        return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)


def open_split(data: DataConfig, split: str) -> Split:
    """Finds the classes of a split."""
    return Split(data, split, resolve_info(data.dataset, data.dataset_dir))


class SplitEvaluation:
    """Evaluates a model on parts of a split; see `transforms.EvaluateRecords`.

    Args:
        model: Path of an exported model.
        data: The records.
        split: Name of the split.
        config: The ignored label.
        measures: `trimap`, `boundary_iou` and `calibration` of `make_measures`.
    """

    def __init__(
        self,
        model: str,
        data: DataConfig,
        split: str,
        config: EvalConfig,
        measures: tuple[str, bool, bool],
    ):
        self._source, self._measures = model, measures
        self._evaluator = Evaluator(load_artefact(model), config, shows_progress=False)
        self._split = open_split(data, split)

    def count(self, part: tuple[int, int]) -> list[np.ndarray]:
        """Returns the counts of the `i`-th of `n` parts, which can be added."""
        measures = list(self._make_measures().values())
        counts = self._evaluator.count(self._split.load(*part), measures)
        return [*counts, *(measure.counts for measure in measures)]

    def compute_metrics(self, counts: Sequence[np.ndarray]) -> dict:
        """Returns the content of `metrics.json` for the counts of all parts."""
        own = len(Counts._fields)
        metrics = self._evaluator.compute_metrics(Counts(*counts[:own]))
        measures = self._make_measures()
        for measure, found in zip(measures.values(), counts[own:], strict=True):
            measure.counts = found
        return add_details(metrics, self._split, self._source, measures)

    def _make_measures(self) -> dict:
        return make_measures(self._split.info, *self._measures)
