"""Shows the effect of the decoder on procedural scenes, without any download.

    python -m benchmarks.qualitative --output_dir=qualitative

`datasets/shapes.py` draws the scenes. Two DeepLabs with MobileNetV2, with the decoder
and with bilinear up-sampling instead, are trained from scratch with the recipe of
`demo.sh` and predict unseen scenes. <output_dir>/decoder.png shows both predictions
and their errors side by side; the terminal shows mIoU of full scenes and of trimaps.
Run the same command again to resume. Each training takes some minutes on two cores.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import json
import os

import cv2
import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks import measuring
from deeplab_tf.checkpoints.pretrained import from_pretrained
from deeplab_tf.config import DataConfig
from deeplab_tf.convert import shapes, voc2012
from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.programs import run_program
from deeplab_tf.visualize import (
    add_captions,
    colorize,
    contact_sheet,
    convert_to_rgb,
    encode_png,
    error_map,
)

_DECODER_STRIDES = {"decoder": "4", "bilinear": ""}
# The recipe of demo.sh, with the papers' ASPP.
_RECIPE = (
    *("--model_variant=mobilenet_v2", "--output_stride=16", "--atrous_rates=6,12,18"),
    *("--train_crop_size=129,129", "--train_batch_size=8"),
    *("--min_scale_factor=0.75", "--max_scale_factor=1.25"),
    *("--base_learning_rate=0.5", "--slow_start_step=50"),
    *("--slow_start_learning_rate=0.1", "--batch_norm_momentum=0.95"),
)
_ENLARGED = 1.5
SHEET = "decoder.png"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    return measuring.make_flags(
        output_dir=(..., "Folder for scenes, checkpoints and images."),
        steps=(1200, "Training steps.", 1),
        train_images=(1600, "Training scenes.", 1),
        val_images=(200, "Validation scenes.", 1),
        rows=(5, "Scenes in the image.", 1),
    )


def make_records(values: absl_flags.FlagValues) -> str:
    """Returns the folder of the records; draws and converts missing scenes."""
    folder = os.path.join(values.output_dir, "tfrecord")
    if not tf.io.gfile.exists(folder):
        scenes = os.path.join(values.output_dir, "scenes")
        if not tf.io.gfile.exists(scenes):
            shapes.write(scenes, values.train_images, values.val_images, 1)
        voc2012.convert(scenes, folder)
    return folder


def _run(name: str, *arguments: str) -> None:
    """Runs one of our programs."""
    run_program(f"deeplab_tf.programs.{name}", [f"{name}.py", *arguments])


def train_and_score(name: str, dataset_dir: str, values: absl_flags.FlagValues) -> str:
    """Trains and evaluates a model with the programs; returns its folder."""
    folder = os.path.join(values.output_dir, name)
    records = f"--dataset_dir={dataset_dir}"
    stride = f"--decoder_output_stride={_DECODER_STRIDES[name]}"
    steps = f"--training_number_of_steps={values.steps}"
    _run("train", records, f"--train_logdir={folder}", stride, steps, *_RECIPE)
    scores = (f"--eval_logdir={folder}/eval", "--trimap=void", "--noreport")
    _run("eval", records, f"--checkpoint_dir={folder}", *scores)
    with open(f"{folder}/eval/metrics.json") as file:
        metrics = json.load(file)
    bands = zip(metrics["trimap"]["widths"], metrics["trimap"]["miou"], strict=True)
    trimaps = ", ".join(f"{width}: {100 * miou:.1f}" for width, miou in bands)
    miou = 100 * metrics["miou"]
    print(f"{name:8s} mIoU {miou:.1f}%; in trimaps of width {trimaps}")
    return folder


def draw_sheet(
    scenes: list[tuple], models: dict[str, keras.Model], info: DatasetInfo
) -> np.ndarray:
    """Returns a row per scene: image, ground truth, predictions and errors.

    Args:
        scenes: Images `[h, w, 3]` and labels `[h, w, 1]` of one size.
        models: Models by caption.
        info: Class colours.
    """
    cells, captions = [], ["image", "truth"]
    for image, labels in scenes:
        truth = labels[..., 0]
        cells += [convert_to_rgb(image), colorize(truth, info)]
        for model in models.values():
            (predicted,) = predict_labels(model, image[None])
            cells += [colorize(predicted, info), error_map(truth, predicted, info)]
    for name in models:
        captions += [name, "its errors"]
    nearest = {"fx": _ENLARGED, "fy": _ENLARGED, "interpolation": cv2.INTER_NEAREST}
    cells = [cv2.resize(cell, None, **nearest) for cell in cells]
    return add_captions(contact_sheet(cells, len(captions)), captions)


def main(values: absl_flags.FlagValues) -> None:
    """Trains and evaluates both models and draws their predictions."""
    dataset_dir = make_records(values)
    models = {
        name: from_pretrained(train_and_score(name, dataset_dir, values))
        for name in _DECODER_STRIDES
    }
    unseen = load_dataset(DataConfig(dataset_dir), "val", training=False).unbatch()
    scenes = list(unseen.take(values.rows).as_numpy_iterator())
    info = sources.resolve_info(None, dataset_dir)
    path = os.path.join(values.output_dir, SHEET)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(encode_png(draw_sheet(scenes, models, info)))
    print(path)


if __name__ == "__main__":
    run_program(__name__)
