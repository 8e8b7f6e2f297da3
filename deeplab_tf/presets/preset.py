"""Named experiments, their descriptions and deviations from them."""

import dataclasses
from collections.abc import Iterable
from typing import TypeAlias

from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig, TrainConfig
from deeplab_tf.config.options import Dataclass

# A config of a preset and the same config of a run.
Pair: TypeAlias = tuple[Dataclass, Dataclass]


@dataclasses.dataclass(frozen=True)
class Published:
    """The published figures of an experiment.

    Attributes:
        miou: Mean IoU in percent; None for a pretrained backbone.
        multiply_adds: Billions of multiply-adds.
        pixel_accuracy: Pixel accuracy in percent.
        remark: Note on the figures.
    """

    miou: float | None = None
    multiply_adds: float | None = None
    pixel_accuracy: float | None = None
    remark: str = ""

    def __str__(self) -> str:
        figures = {
            "mIoU {}%": self.miou,
            "pixel accuracy {}%": self.pixel_accuracy,
            "{} B multiply-adds": self.multiply_adds,
        }
        parts = [text.format(value) for text, value in figures.items() if value]
        return ", ".join([*(parts or ["no figure"]), *filter(None, [self.remark])])


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named experiment: model, training, evaluation and published figures.

    Attributes:
        name: Name for `--preset`.
        source: Paper and table or section, or the model zoo.
        model: The model at its training output stride.
        data: Dataset, crop and batch size.
        train: Training recipe.
        train_split: Training split.
        start: Initial weights, possibly the name of a preset.
        evaluation: Scales, flip and crop size of the evaluation.
        eval_output_stride: Output stride of the evaluation.
        eval_split: Evaluation split.
        published: Published figures.
        expected_miou: Pairs of a training step and the mIoU, 0..1, that we measured at
            that step, on `eval_split` at one scale.
    """

    name: str
    source: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    train_split: str
    start: str
    evaluation: EvalConfig
    eval_output_stride: int
    eval_split: str
    published: Published
    expected_miou: tuple[tuple[int, float], ...] = ()

    @property
    def eval_model(self) -> ModelConfig:
        """The model at the output stride of the evaluation."""
        return self.model.at_output_stride(self.eval_output_stride)


def is_preset_followed(preset: Preset, parts: Iterable[Pair], **values: object) -> bool:
    """Returns whether a run has no deviations from a preset; see `describe_run`."""
    return not _list_run_deviations(preset, parts, values)


def _format_size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if size else "of each image"


# These are not part of a recipe.
_NOT_COMPARED = (
    *("dataset_dir", "data_service"),
    *("train_logdir", "tf_initial_checkpoint", "tracker"),
)


def describe(preset: Preset) -> str:
    """Describes a preset: one line each for model, recipe, protocol and figures."""
    model, data, train = preset.model, preset.data, preset.train
    evaluation = preset.evaluation
    norm = "trained" if train.fine_tune_batch_norm else "frozen"
    scales = ", ".join(map(str, evaluation.eval_scales))
    flip = ", flipped" if evaluation.add_flipped_images else ""
    expected = [f"{miou:.2f} at step {step}" for step, miou in preset.expected_miou]
    return "\n".join(
        [
            f"{preset.name} ({preset.source}): {preset.published}",
            f"  model: {model.backbone}, {model.num_classes} classes, output stride "
            f"{model.output_stride}, from {preset.start}",
            f"  training: {data.dataset} {preset.train_split}, "
            f"{train.training_number_of_steps} steps of {data.batch_size} crops "
            f"{_format_size(data.crop_size)}, learning rate "
            f"{train.base_learning_rate:g} {train.learning_policy} "
            f"{train.learning_power:g}, weight decay {train.weight_decay:g}, "
            f"batch normalisation {norm}",
            f"  evaluation: {preset.eval_split}, output stride "
            f"{preset.eval_output_stride}, crop "
            f"{_format_size(evaluation.eval_crop_size)}, scales {scales}{flip}",
            *([f"  expected: mIoU {', '.join(expected)}"] if expected else []),
        ]
    )


def describe_run(preset: Preset, parts: Iterable[Pair], **values: object) -> str:
    """Describes a preset, and the deviations of a run from it.

    `parts` are pairs of a config of the preset and the same config of the run; `values`
    are the run's values for other attributes of the preset.
    """
    changes = _list_run_deviations(preset, parts, values)
    return f"{describe(preset)}\n  deviations: {'; '.join(changes) or 'none'}"


def _list_run_deviations(
    preset: Preset, parts: Iterable[Pair], values: dict
) -> list[str]:
    """Lists the deviations of configs and of other attributes; see `describe_run`."""
    changes = [line for pair in parts for line in list_deviations(*pair)]
    return changes + [
        f"{name}: {getattr(preset, name)} -> {value}"
        for name, value in values.items()
        if value != getattr(preset, name)
    ]


def list_deviations(old: Dataclass, new: Dataclass) -> list[str]:
    """Lists the differences between two configs of a class as "name: old -> new"."""
    found = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(type(before)):
            found += [f"{field.name}.{line}" for line in list_deviations(before, after)]
        elif before != after and field.name not in _NOT_COMPARED:
            found.append(f"{field.name}: {before} -> {after}")
    return found
