"""Transforms for pipelines of Apache Beam: labelling and evaluation.

`--runner` of the programs uses `pipelines` instead, which needs less of a runner.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference
from apache_beam.utils import shared

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.config.options import COUNT

if TYPE_CHECKING:  # workers import TensorFlow when they load the model
    from deeplab_tf.beam.models import Labeler, SplitEvaluation

# As in the programs, so that labels are equal in every bit.
_ENVIRONMENT = {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


class Labelled(NamedTuple):
    """The outputs of `LabelImages`.

    Attributes:
        labels: Pairs of a key and class ids, `[height, width]`, uint8, or uint16 if
            there are more than 256 classes.
        errors: Pairs of a key and the reason why its image has no labels.
    """

    labels: beam.PCollection
    errors: beam.PCollection


class LabelImages(beam.PTransform):
    """Labels images, given as pairs of a key and the content of an image file.

        files = pipeline | fileio.MatchFiles("photos/*.jpg") | fileio.ReadMatches()
        images = files | beam.Map(lambda file: (file.metadata.path, file.read()))
        labels, errors = images | LabelImages("export")

    Images are decoded and labelled as in `deeplab-predict`. One that cannot be labelled
    does not stop the pipeline.

    Args:
        model: Path of an exported model or `.keras` file; see `load_artefact`.
        batch_size: Maximum number of images per forward pass, which must have one size.
            Above 1, rounding may change a few pixels per million, and Beam's Dask
            runner drops the last batch.

    Raises:
        UserError: if an argument has a wrong type or value.
    """

    @check_arguments(batch_size=COUNT)
    def __init__(self, model: str, batch_size: int = 1):
        super().__init__()
        self._handler = LabelHandler(model, batch_size)

    def expand(self, images: beam.PCollection) -> Labelled:
        """Applies the transform."""
        found = (
            images
            # The handler does not get the key, which errors name.
            | "AddName" >> beam.Map(lambda pair: (pair[0], (str(pair[0]), pair[1])))
            | RunInference(KeyedModelHandler(self._handler))
            | beam.Partition(lambda pair, _: int(isinstance(pair[1], str)), 2)
        )
        return Labelled(*found)


class LabelHandler(ModelHandler):
    """Labels images in Beam's `RunInference`.

    Examples are pairs of a name and the content of an image file. Results are the
    labels of the image, or a string with the reason why it has none; see `Labelled`.
    The arguments are those of `LabelImages`.
    """

    @check_arguments(batch_size=COUNT)
    def __init__(self, model: str, batch_size: int = 1):
        # Batches of 1 do not wait for the end of a bundle.
        sizes = {"min_batch_size": 1, "max_batch_size": batch_size}
        super().__init__(**sizes, env_vars=_ENVIRONMENT)
        self._model = model

    def load_model(self) -> "Labeler":
        """Loads the model, once per process."""
        from deeplab_tf.beam.models import Labeler

        return Labeler(self._model)

    def run_inference(
        self,
        batch: Sequence[tuple[str, bytes]],
        model: "Labeler",
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[np.ndarray | str]:
        """Labels images; those of one size together."""
        return model.label(batch)

    def get_metrics_namespace(self) -> str:
        """Returns the namespace of Beam's counters."""
        return "deeplab_tf"


class EvaluateRecords(beam.PTransform):
    """Evaluates a model on a split; gives one element, the content of `metrics.json`.

        data = DataConfig("tfrecord", batch_size=1)
        metrics = pipeline | EvaluateRecords("export", data, "val")

    Workers count parts of the split. All scores are computed from sums of integers, so
    they equal those of one process.

    Args:
        model: Path of an exported model or `.keras` file; see `load_artefact`.
        data: The records; `batch_size` is the number of images per forward pass.
        split: Name of the split.
        config: Settings of the evaluation. Of a model, its inference protocol applies.
        trimap: See `make_measures`, as for `boundary_iou` and `calibration`.

    Raises:
        UserError: if an argument has a wrong type.
    """

    @check_arguments()
    def __init__(
        self,
        model: str,
        data: DataConfig,
        split: str = "val",
        config: EvalConfig = EvalConfig(),
        trimap: str = "none",
        boundary_iou: bool = False,
        calibration: bool = False,
    ):
        super().__init__()
        measures = trimap, boundary_iou, calibration
        self._data, self._split = data, split
        self._loader = _Loader(model, data, split, config, measures)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Applies the transform; raises UserError if there is no such split."""
        from deeplab_tf.beam.models import open_split

        loader = self._loader
        return (
            pipeline
            | beam.Create(open_split(self._data, self._split).list_parts())
            | beam.Reshuffle()
            | "Count" >> beam.Map(lambda part: loader.load().count(part))
            | beam.CombineGlobally(_sum_counts)
            | "Finish" >> beam.Map(lambda counts: loader.load().compute_metrics(counts))
        )


class _Loader:
    """Loads a `SplitEvaluation` once per process."""

    def __init__(self, *arguments: Any):
        self._arguments = arguments
        self._shared = shared.Shared()

    def load(self) -> "SplitEvaluation":
        return self._shared.acquire(self._make)

    def _make(self) -> "SplitEvaluation":
        from deeplab_tf.beam.models import SplitEvaluation

        return SplitEvaluation(*self._arguments)


def _sum_counts(counts: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    """Adds lists of counts; Beam also calls it with none and with its results."""
    return [sum(parts) for parts in zip(*filter(None, counts), strict=True)]
