"""Describes a training run before it starts, and what to run after it."""

import os

from deeplab_tf.config import Experiment, TrainConfig
from deeplab_tf.programs import suggest_commands
from deeplab_tf.training.checkpoint_files import BEST, list_prefixes
from deeplab_tf.training.trainer import Trainer


def describe_plan(
    experiment: Experiment, trainer: Trainer, images: int, resumed: str | None
) -> list[str]:
    """Returns lines on data, model, weights, steps, evaluation and results.

    Args:
        experiment: The settings of the run.
        trainer: The trainer, ready to start.
        images: Number of training images.
        resumed: Prefix of the checkpoint to resume from, if any.
    """
    data, model, train = experiment.data, experiment.model, experiment.train
    height, width = data.crop_size
    steps = train.training_number_of_steps
    epochs = steps * data.batch_size / images
    weights = resumed or train.tf_initial_checkpoint or "random"
    if trainer.step >= steps:
        return [
            f"{train.train_logdir} has {trainer.step:,} steps already: raise "
            f"--training_number_of_steps={steps} to continue, or give a different "
            "--train_logdir to start again"
        ]
    return [
        f"data: {data.dataset} {experiment.split}, {images:,} images, batches of "
        f"{data.batch_size} crops of {height}x{width}",
        f"model: {model.backbone}, {model.num_classes} classes, output stride "
        f"{model.output_stride}, {trainer.model.count_params():,} parameters",
        f"initial weights: {weights}",
        f"steps: {trainer.step:,} to {steps:,}, {epochs:.1f} epochs in total",
        f"evaluation: {_describe_evaluation(train)}",
        f"results: {train.train_logdir}",
    ]


def _describe_evaluation(train: TrainConfig) -> str:
    if train.eval_interval_steps:
        return f"every {train.eval_interval_steps:,} steps"
    return "none while training; --eval_interval_steps=N adds it"


def suggest_use(experiment: Experiment) -> None:
    """Prints the commands that evaluate, export and apply the trained model."""
    data, folder = experiment.data, experiment.train.train_logdir
    best = os.path.join(folder, BEST)
    model = best if list_prefixes(best) else folder
    export = [f"--checkpoint_path={model}", f"--export_path={folder}/exported"]
    if data.dataset_dir and experiment.info and "val" in experiment.info.split_sizes:
        # The export is then compared with the model.
        export.append(f"--dataset_dir={data.dataset_dir}")
    commands = [
        ("eval", f"--checkpoint_dir={model}", f"--eval_logdir={folder}/eval"),
        ("export", *export),
        ("predict", f"--model={model}", "--images=IMAGES", "--output_dir=OUT"),
    ]
    suggest_commands(commands)
