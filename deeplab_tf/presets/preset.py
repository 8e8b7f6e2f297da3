"""A named experiment, its description, and how a run deviates from it."""

import dataclasses
from collections.abc import Iterable
from typing import TypeAlias

from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig, TrainConfig
from deeplab_tf.config.checks import Dataclass

# A config of a preset, and the run's.
Pair: TypeAlias = tuple[Dataclass, Dataclass]


@dataclasses.dataclass(frozen=True)
class Published:
    """The published figures of an experiment.

    Attributes:
        miou: Mean IoU in per cent; None for a checkpoint of a classifier.
        multiply_adds: Billions of multiply-adds.
        pixel_accuracy: Share of right pixels in per cent.
        remark: Remark on the figures.
    """

    miou: float | None = None
    multiply_adds: float | None = None
    pixel_accuracy: float | None = None
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A row of a table: model, training, evaluation and published figures.

    Attributes:
        name: What `--preset` takes.
        source: Paper and table or section, or the model zoo.
        model: The model at its training output stride.
        data: Dataset, crop and batch.
        train: The optimiser's recipe.
        train_split: Split it is trained on.
        start: Initial weights; may be the name of a preset.
        evaluation: Scales, flip and crop of the evaluation.
        eval_output_stride: Output stride of the evaluation.
        eval_split: Split it is scored on.
        published: The figures.
        canaries: Pairs of a step and our own mIoU, 0..1, on `eval_split` after it at
            one scale.
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
    canaries: tuple[tuple[int, float], ...] = ()

    @property
    def eval_model(self) -> ModelConfig:
        """The model of the evaluation: the same weights at another output stride."""
        return self.model.at_output_stride(self.eval_output_stride)


def is_followed(preset: Preset, parts: Iterable[Pair], **others: object) -> bool:
    """Returns whether a run follows a preset without deviation.

    Args:
        preset: The preset.
        parts: As in `report`.
        **others: As in `report`.
    """
    return not _changes(preset, parts, others)


def _size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if size else "of each image"


# Paths are no part of a recipe.
_PATHS = ("dataset_dir", "train_logdir", "tf_initial_checkpoint")


def describe(preset: Preset) -> str:
    """Returns source, figures, recipe and protocol of a preset, one line for each."""
    model, data, train = preset.model, preset.data, preset.train
    published, evaluation = preset.published, preset.evaluation
    figures = {
        "mIoU {} %": published.miou,
        "pixel accuracy {} %": published.pixel_accuracy,
        "{} B multiply-adds": published.multiply_adds,
    }
    found = [text.format(value) for text, value in figures.items() if value]
    found = found or ["no figure"]
    found += [published.remark] if published.remark else []
    norm = "trained" if train.fine_tune_batch_norm else "frozen"
    scales = ", ".join(map(str, evaluation.eval_scales))
    flip = ", mirrored" if evaluation.add_flipped_images else ""
    expected = [f"{miou:.2f} at step {step}" for step, miou in preset.canaries]
    return "\n".join(
        [
            f"{preset.name} ({preset.source}): {', '.join(found)}",
            f"  model: {model.backbone}, {model.num_classes} classes, output stride "
            f"{model.output_stride}, from {preset.start}",
            f"  training: {data.dataset} {preset.train_split}, "
            f"{train.training_number_of_steps} steps of {data.batch_size} crops "
            f"{_size(data.crop_size)}, learning rate {train.base_learning_rate:g} "
            f"{train.learning_policy} {train.learning_power:g}, weight decay "
            f"{train.weight_decay:g}, batch normalisation {norm}",
            f"  evaluation: {preset.eval_split}, output stride "
            f"{preset.eval_output_stride}, crop {_size(evaluation.eval_crop_size)}, "
            f"scales {scales}{flip}",
            *([f"  to be expected: mIoU {', '.join(expected)}"] if expected else []),
        ]
    )


def report(preset: Preset, parts: Iterable[Pair], **others: object) -> str:
    """Returns the description of a preset and the deviations of a run.

    Args:
        preset: The preset.
        parts: Pairs of configs, the preset's and the run's.
        **others: The run's values for attributes of the preset.
    """
    changes = _changes(preset, parts, others)
    return f"{describe(preset)}\n  deviations: {'; '.join(changes) or 'none'}"


def _changes(preset: Preset, parts: Iterable[Pair], others: dict) -> list[str]:
    """Returns every deviation of a run from a preset."""
    changes = [line for pair in parts for line in deviations(*pair)]
    return changes + [
        f"{name}: {getattr(preset, name)} -> {value}"
        for name, value in others.items()
        if value != getattr(preset, name)
    ]


def deviations(preset_part: Dataclass, part: Dataclass) -> list[str]:
    """Returns the differences of two configs of one class, "name: was -> is".

    Args:
        preset_part: A config of a preset.
        part: The run's config.
    """
    found = []
    for field in dataclasses.fields(preset_part):
        was, now = getattr(preset_part, field.name), getattr(part, field.name)
        if dataclasses.is_dataclass(type(was)):
            found += [f"{field.name}.{line}" for line in deviations(was, now)]
        elif was != now and field.name not in _PATHS:
            found.append(f"{field.name}: {was} -> {now}")
    return found
