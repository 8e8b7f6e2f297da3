r"""Pictures of what the decoder does, on scenes that nobody has to download.

    python -m benchmarks.qualitative --output_dir=qualitative

`datasets/shapes.py` draws the scenes. Two DeepLabs with MobileNetV2, one with the
decoder and one with naive bilinear up-sampling instead, are trained on them from
nothing by the recipe of `demo.sh`, then label scenes that they have not seen.
<output_dir>/decoder.png has these beside each other, with what is wrong in colour;
printed are the mIoU of whole scenes and of trimaps. A killed program goes on where it
was. Each training takes some minutes of two cores.
"""

import os
from collections.abc import Iterator

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
import cv2
import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks.ablations import train, trained_model
from deeplab_tf.config import (
    DataConfig,
    DecoderConfig,
    Experiment,
    ModelConfig,
    TrainConfig,
)
from deeplab_tf.convert import shapes, voc2012
from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.evaluation.boundary import TrimapCurve
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.inference import predict_labels
from deeplab_tf.programs import run_program
from deeplab_tf.visualize import (
    as_rgb,
    colorize,
    contact_sheet,
    error_map,
    png_bytes,
    with_captions,
)

_MODELS = {"decoder": DecoderConfig(), "bilinear": DecoderConfig(output_strides=())}
_UNSEEN = "val"
_ENLARGED = 1.5
PICTURE = "decoder.png"


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of scenes, checkpoints and picture.",
        required=True,
        flag_values=values,
    )
    for name, default, text in (
        ("steps", 1200, "Steps of a training."),
        ("train_images", 1600, "Scenes to train on."),
        ("val_images", 200, "Unseen scenes to score."),
        ("rows", 5, "Scenes of the picture."),
    ):
        absl_flags.DEFINE_integer(
            name, default, text, lower_bound=1, flag_values=values
        )
    return values


def make_records(values: absl_flags.FlagValues) -> str:
    """Returns the folder of the records of all scenes, which are drawn if need be."""
    folder = os.path.join(values.output_dir, "tfrecord")
    if not tf.io.gfile.exists(folder):
        scenes = os.path.join(values.output_dir, "scenes")
        if not tf.io.gfile.exists(scenes):
            counts = (values.train_images, values.val_images, 1)
            shapes.write(scenes, *counts)
        voc2012.convert(scenes, folder)
    return folder


def make_experiment(
    decoder: DecoderConfig, name: str, dataset_dir: str, values: absl_flags.FlagValues
) -> Experiment:
    """Returns the recipe of demo.sh."""
    info = sources.resolve_info(None, dataset_dir)
    model = ModelConfig(
        "mobilenet_v2",
        num_classes=info.num_classes,
        output_stride=16,
        batch_norm_momentum=0.95,
        decoder=decoder,
    )
    data = DataConfig(
        dataset_dir,
        dataset=info.name,
        crop_size=(129, 129),
        batch_size=8,
        min_scale_factor=0.75,
        max_scale_factor=1.25,
        mean_pixel=model.mean_pixel,
    )
    config = TrainConfig(
        base_learning_rate=0.5,
        slow_start_step=50,
        slow_start_learning_rate=0.1,
        training_number_of_steps=values.steps,
        ignore_label=info.ignore_label,
        train_logdir=os.path.join(values.output_dir, name),
    )
    return Experiment(model=model, data=data, train=config, split="train", info=info)


def score(experiment: Experiment, model: keras.Model) -> dict:
    """Returns the metrics on unseen scenes, those of trimaps among them."""
    info = experiment.info
    trimap = TrimapCurve(info.num_classes, info.ignore_label)
    scenes = load_dataset(experiment.data, _UNSEEN, training=False)
    metrics = Evaluator(model).evaluate(scenes, measures=[trimap])
    return metrics | {"trimap": trimap.metrics()}


def first_scenes(experiment: Experiment, count: int) -> Iterator[tuple]:
    """Yields image `[h, w, 3]` and labels `[h, w]` of the first unseen scenes."""
    scenes = load_dataset(experiment.data, _UNSEEN, training=False).unbatch()
    for image, labels in scenes.take(count).as_numpy_iterator():
        yield image, labels[..., 0]


def picture(
    scenes: list[tuple], models: dict[str, keras.Model], info: DatasetInfo
) -> np.ndarray:
    """Returns a row for each scene: image, truth, predictions and their errors.

    Args:
        scenes: Images `[h, w, 3]` and labels `[h, w]`, all of one size.
        models: By the name to write above.
        info: Colours of the classes.
    """
    cells, captions = [], ["image", "truth"]
    for image, truth in scenes:
        cells += [as_rgb(image), colorize(truth, info)]
        for model in models.values():
            (labels,) = predict_labels(model, image[None])
            cells += [colorize(labels, info), error_map(truth, labels, info)]
    for name in models:
        captions += [name, "its errors"]
    cells = [
        cv2.resize(
            cell,
            None,
            fx=_ENLARGED,
            fy=_ENLARGED,
            interpolation=cv2.INTER_NEAREST,
        )
        for cell in cells
    ]
    return with_captions(contact_sheet(cells, len(captions)), captions)


def show(name: str, metrics: dict) -> None:
    """Prints mIoU in whole scenes and in trimaps."""
    trimap = metrics["trimap"]
    bands = zip(trimap["widths"], trimap["miou"], strict=True)
    told = ", ".join(f"{width}: {100 * miou:.1f}" for width, miou in bands)
    print(f"{name:8s} mIoU {100 * metrics['miou']:.1f} %; in trimaps of width {told}")


def main(values: absl_flags.FlagValues) -> None:
    """Trains, scores and draws."""
    dataset_dir, models = make_records(values), {}
    strategy = tf.distribute.get_strategy()
    for name, decoder in _MODELS.items():
        experiment = make_experiment(decoder, name, dataset_dir, values)
        train(experiment, strategy)
        models[name] = trained_model(experiment)
        show(name, score(experiment, models[name]))
    scenes = list(first_scenes(experiment, values.rows))
    path = os.path.join(values.output_dir, PICTURE)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(png_bytes(picture(scenes, models, experiment.info)))
    print(path)


if __name__ == "__main__":
    run_program(__name__)
