"""Writes predictions as images with the flags of vis.py."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.checkpoints import tf1
from deeplab_tf.config import DataConfig, EvalConfig
from deeplab_tf.config.options import flagged_fields, vis_flag_name
from deeplab_tf.data.info import (
    CITYSCAPES_IDS,
    DatasetInfo,
    dataset_info,
    voc_colors,
)
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.reader import count_batches, iterate_batches
from deeplab_tf.errors import pluralize
from deeplab_tf.evaluation.evaluator import make_predictor
from deeplab_tf.labelling import writers
from deeplab_tf.labelling.batches import Images, label_images
from deeplab_tf.presets import describe_run
from deeplab_tf.programs.loading import (
    Records,
    find_records,
    list_checkpoints,
    load_exported_model,
    load_model,
)
from deeplab_tf.programs.prediction import Labeler, claim_existing, compile_labeler
from deeplab_tf.serving.formats import is_artefact
from deeplab_tf.serving.signatures import Resizing, ResizingPredictor

_COLORED, _RAW = "segmentation_results", "raw_segmentation_results"
_CITYSCAPES = dataset_info("cityscapes")
# Flags that only apply to checkpoints, in addition to the model flags.
_CHECKPOINT_FLAGS = (
    *(
        vis_flag_name(field)
        for field in flagged_fields(EvalConfig)
        if field.name in flags.INFERENCE
    ),
    *(*flags.RESIZING, "eval_interval_secs"),
)
# Colours of the labels 0..255; the rest is black.
COLORMAPS = {"pascal": voc_colors(256), "cityscapes": _CITYSCAPES.colors}


def _read_eval_config(values: absl_flags.FlagValues) -> EvalConfig:
    preset = flags.read_preset(values)
    return flags.read_options(
        values, EvalConfig, preset and preset.evaluation, vis_flag_name
    )


def _read_images(values: absl_flags.FlagValues, records: Records) -> Images:
    """Reads names and images in the order of the records, at their original size."""
    preset, split = flags.read_preset(values), values.vis_split
    if preset and not values["vis_split"].present:
        split = preset.eval_split
    data = DataConfig(records.folder, records.info.name, batch_size=1)
    dataset = load_dataset(data, split, training=False, named=True)

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for images, _, names in iterate_batches(dataset):
            image = np.asarray(images)[0]
            if records.info.max_value == 255:
                image = image.astype(np.uint8)  # exact
            yield np.asarray(names)[0].decode(errors="replace"), image

    return Images(read(), count_batches(dataset), "img")


def _make_labeler(
    values: absl_flags.FlagValues,
    config: EvalConfig,
    checkpoint: tf1.Checkpoint,
    info: DatasetInfo,
    prints_preset: bool,
) -> Labeler:
    """Restores a checkpoint and returns a labeler; may print preset deviations."""
    preset = flags.read_preset(values)
    model = load_model(values, checkpoint, info)
    if preset and prints_preset:
        parts = [(preset.eval_model, model.model_config), (preset.evaluation, config)]
        print(describe_run(preset, parts))
    data = flags.read_data_config(values, model.model_config, preset and preset.data)
    predictor = make_predictor(model, config)
    if data.min_resize_value is None:
        return compile_labeler(predictor, info)
    sizes = (data.min_resize_value, data.max_resize_value, data.resize_factor)
    return compile_labeler(ResizingPredictor(predictor, Resizing(*sizes)), info)


def _write_predictions(
    values: absl_flags.FlagValues,
    config: EvalConfig,
    labeler: Labeler,
    records: Records,
) -> None:
    """Labels all images and writes coloured and, if selected, raw labels."""
    images = _read_images(values, records)
    colors = COLORMAPS[values.colormap_type]
    colormap = np.zeros((256, 3), np.uint8)
    colormap[: len(colors)] = colors
    folder = os.path.join(values.vis_logdir, _COLORED)
    opened = [writers.write_colored(folder, colormap)]
    if values.also_save_raw_predictions:
        ids = CITYSCAPES_IDS if records.info.name == _CITYSCAPES.name else None
        opened.append(writers.write_raw(os.path.join(values.vis_logdir, _RAW), ids))
    with contextlib.ExitStack() as stack:
        active = [stack.enter_context(writer) for writer in opened]
        count = label_images(images, labeler, config.eval_batch_size, active)
    print(pluralize(count, "image(s) labelled"))


def main(values: absl_flags.FlagValues) -> None:
    """Writes the predictions once, or of every new checkpoint of a training run."""
    flags.check_flags(values, "vis")
    config = _read_eval_config(values)
    colored = r"\d{6,}_(image|prediction)\.png"
    for folder, pattern in ((_COLORED, colored), (_RAW, r".*\.png")):
        path = os.path.join(values.vis_logdir, folder)
        claim_existing(path, pattern, values.overwrite)
    path = values.checkpoint_dir
    if is_artefact(path):
        artefact, records = load_exported_model(values, path, _CHECKPOINT_FLAGS)
        _write_predictions(values, config, artefact.labels, records)
        return
    checkpoints = list_checkpoints(values, values.max_number_of_iterations)
    for i, checkpoint in enumerate(checkpoints):
        records, _ = find_records(values, checkpoint)
        labeler = _make_labeler(values, config, checkpoint, records.info, i == 0)
        _write_predictions(values, config, labeler, records)
