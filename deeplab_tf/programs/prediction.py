"""Predicts with the flags of deeplab-predict."""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo, dataset_info, generic_info
from deeplab_tf.data.pipeline import scale_to_255
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.evaluation.evaluator import make_predictor
from deeplab_tf.files import outputs
from deeplab_tf.images.georeference import has_rasterio, is_geotiff
from deeplab_tf.images.inputs import find_images
from deeplab_tf.images.videos import Video, read_video
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling import writers
from deeplab_tf.labelling.batches import Images, label_images
from deeplab_tf.labelling.files import (
    SKIPPED,
    ImageReader,
    raise_all_broken,
    report_skipped,
)
from deeplab_tf.labelling.large import TILE, label_in_tiles
from deeplab_tf.labelling.page import PAGE_FILE, write_predictions_page
from deeplab_tf.presets import describe_run
from deeplab_tf.programs import (
    read_command_line,
    runners,
    start_tensorflow,
)
from deeplab_tf.programs.checkpoint import (
    find_experiment,
    require_no_model_flags,
    resolve_class_info,
    restore_model,
)
from deeplab_tf.serving.formats import is_artefact, load_artefact
from deeplab_tf.serving.signatures import ResizingPredictor
from deeplab_tf.training.interruption import Interruption
from deeplab_tf.windows import translate_limit_errors

# Images of a task of --runner.
_CHUNK = 50

# If neither the model nor a flag gives the number of classes.
_MAX_CLASSES = 255

# uint8 images [b, h, w, 3] -> int32 labels [b, h, w]
Labeler = Callable[[np.ndarray], np.ndarray]


def _load_labeler(
    values: absl_flags.FlagValues, needs_rgb: bool = False
) -> tuple[Labeler, DatasetInfo]:
    """Returns a labeler for images as they are read, and the classes."""
    load = _load_artefact if is_artefact(values.model) else _load_checkpoint
    labeler, info = load(values)
    if needs_rgb and (info.channels, info.max_value) != (3, 255):
        raise UserError(
            f"{values.model} takes images with {info.channels} channels and values "
            f"0..{info.max_value}, but videos are RGB, 0..255"
        )
    if info.max_value == 255:
        return labeler, info
    return lambda images: labeler(scale_to_255(images, info).numpy()), info


def _load_artefact(values: absl_flags.FlagValues) -> tuple[Labeler, DatasetInfo]:
    """Loads an exported model; returns a labeler and the classes."""
    require_no_model_flags(values, values.model, flags.INFERENCE)
    artefact = load_artefact(values.model)
    info = _resolve_artefact_classes(artefact, values.dataset)
    channels = artefact.channels or info.channels
    return artefact.labels, dataclasses.replace(info, channels=channels)


def _resolve_artefact_classes(artefact, dataset: str | None) -> DatasetInfo:
    if artefact.num_classes is None:
        if dataset is None:
            return generic_info(_MAX_CLASSES)
        artefact.num_classes = dataset_info(dataset).num_classes
    return resolve_class_info(dataset, artefact.info, artefact.num_classes)


def _load_checkpoint(values: absl_flags.FlagValues) -> tuple[Labeler, DatasetInfo]:
    """Restores a checkpoint and prints deviations from its preset.

    Returns a labeler with the flags' inference protocol, and the classes.
    """
    preset = flags.read_preset(values)
    base = preset.evaluation if preset else EvalConfig()
    config = flags.read_options(values, EvalConfig, base)
    model = restore_model(values, values.model)
    if preset:
        parts = [(preset.eval_model, model.model_config), (base, config)]
        print(describe_run(preset, parts))
    experiment = find_experiment(values.model)
    stored = experiment.info if experiment else None
    info = resolve_class_info(values.dataset, stored, model.model_config.num_classes)
    info = dataclasses.replace(info, channels=model.model_config.channels)
    return compile_labeler(make_predictor(model, config), info), info


def compile_labeler(
    predictor: Predictor | ResizingPredictor, info: DatasetInfo
) -> Labeler:
    """Returns a labeler of images that are uint8 or, with `max_value`, 0..255."""
    dtype = tf.uint8 if info.max_value == 255 else tf.float32
    compiled = tf.function(
        predictor.labels,
        input_signature=[tf.TensorSpec([None, None, None, info.channels], dtype)],
        autograph=False,
    )

    def labels(images):
        with translate_limit_errors():
            return compiled(images).numpy()

    return labels


def _label_images(values: absl_flags.FlagValues) -> None:
    """Labels the images of the flags and writes all requested outputs.

    Reports broken images that were skipped, and the number of labelled ones.
    """
    paths = find_images(values.images, values.image_list, values.output_dir or "")
    images = ImageReader(paths, values.skip_broken)
    if not values.runner:  # whose workers check them
        images.check_headers()
    geotiffs = _find_geotiffs(paths) if values.output_dir else {}
    if values.output_dir:
        names = writers.list_image_outputs(paths)
        names += [name + writers.GEOTIFF_SUFFIX for name in geotiffs]
        names += [PAGE_FILE] if values.html else []
        _claim_by_folder(values, [*names, SKIPPED], inputs=paths.values())
    if values.runner:
        _label_on_runner(values, paths)
        return
    labeler, info = _load_labeler(values)
    images.check(info.channels, info.max_value)
    with contextlib.ExitStack() as stack:
        opened = []
        if values.submission:
            archive = values.submission, values.submission_file
            opened.append(writers.write_submission(*archive, info, values.overwrite))
        if values.output_dir:
            opened.append(writers.write_images(values.output_dir, info))
        if values.html:
            page = values.output_dir, info, len(images), read_command_line()
            opened.append(write_predictions_page(*page))
        if geotiffs:
            opened.append(writers.write_geotiffs(values.output_dir, geotiffs))
        opened = [stack.enter_context(writer) for writer in opened]
        count = _label_files(images, labeler, values.batch_size, opened)
    print(pluralize(count, "image(s) labelled"))
    images.report(values.output_dir)


def _label_files(
    images: ImageReader,
    labeler: Labeler,
    batch_size: int,
    opened: Iterable[writers.Writer],
    shows_progress: bool = True,
) -> int:
    """Labels image files, large ones in tiles; returns their number."""
    source = Images(images, len(images), "img")
    count = label_images(source, labeler, batch_size, opened, shows_progress)
    for name, large in images.open_large():
        print(f"{large.path} is labelled in tiles of {TILE}x{TILE} pixels")
        labels, shown = label_in_tiles(large, labeler)
        for write in opened:
            write(name, shown, labels)
        count += 1
    return count


def _label_on_runner(values: absl_flags.FlagValues, paths: Mapping[str, str]) -> None:
    """Labels images on the workers of --runner; broken ones do not stop it."""
    found = list(paths.items())
    chunks = [found[i : i + _CHUNK] for i in range(0, len(found), _CHUNK)]
    start = functools.partial(start_tensorflow, has_frozen_weights=True)
    load = functools.partial(_load_worker, runners.list_given(values))
    folder = values.output_dir
    work = start, load, _label_chunk
    results = runners.run_tasks(values, work, chunks, folder)
    names = {os.path.dirname(name) for name in paths}
    outputs.merge_ledgers(os.path.join(folder, name) for name in names)
    print(pluralize(sum(count for count, _ in results), "image(s) labelled"))
    errors = [line for _, lines in results for line in lines]
    if len(errors) == len(paths):
        raise_all_broken(errors)
    report_skipped(errors, folder)
    if errors and not values.skip_broken:
        raise UserError(f"{errors[0]}; to accept broken images, add --skip_broken")


def _load_worker(
    given: Sequence[str],
) -> tuple[absl_flags.FlagValues, Labeler, DatasetInfo]:
    """Returns flags, labeler and classes in a worker; `given` are the given flags."""
    values = runners.parse_given("deeplab_tf.programs.predict", given)
    return values, *_load_labeler(values)


def _label_chunk(
    worker: tuple[absl_flags.FlagValues, Labeler, DatasetInfo],
    paths: Sequence[tuple[str, str]],
) -> tuple[int, list[str]]:
    """Labels images in a worker; returns their number and a line per broken one."""
    values, labeler, info = worker
    folder = values.output_dir
    images = ImageReader(dict(paths), skip_broken=True, may_skip_all=True)
    images.check_headers()
    images.check(info.channels, info.max_value)
    geotiffs = _find_geotiffs(dict(paths))
    with contextlib.ExitStack() as stack:
        opened = [writers.write_images(folder, info, has_overview=False)]
        if geotiffs:
            opened.append(writers.write_geotiffs(folder, geotiffs))
        opened = [stack.enter_context(writer) for writer in opened]
        count = _label_files(images, labeler, values.batch_size, opened, False)
    return count, images.errors


def _find_geotiffs(paths: Mapping[str, str]) -> dict[str, str]:
    """Returns the GeoTIFFs; without rasterio, warns and returns none."""
    found = {name: path for name, path in paths.items() if is_geotiff(path)}
    if not found or has_rasterio():
        return found
    loss = pluralize(len(found), "GeoTIFF(s) (loses|lose) the georeference")
    print(
        f"warning: {loss}; to keep it, run pip install 'deeplab_tf[geo]'",
        file=sys.stderr,
    )
    return {}


def _claim_by_folder(
    values: absl_flags.FlagValues, names: Iterable[str], inputs: Iterable[str]
) -> None:
    """Claims outputs, whose names may have subfolders, folder by folder."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(os.path.dirname(name), []).append(os.path.basename(name))
    for folder, members in folders.items():
        path = os.path.join(values.output_dir, folder) if folder else values.output_dir
        outputs.claim(path, members, values.overwrite, inputs)


def _label_video(values: absl_flags.FlagValues) -> None:
    """Labels a video or a camera.

    A signal that stops a camera is not a failure; one that stops a video file sets the
    exit status.
    """
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(read_video(values.video))
        _claim_video_files(values, video)
        labeler, info = _load_labeler(values, needs_rgb=True)
        opened = [writers.write_overlay_video(values.output_dir, video, info)]
        if values.save_frames:
            opened.append(writers.write_label_maps(_frames_dir(values, video), info))
        opened = [stack.enter_context(writer) for writer in opened]
        interruption = stack.enter_context(Interruption())
        source = _number_frames(video, values.max_frames, interruption)
        count = label_images(source, labeler, values.batch_size, opened)
    print(pluralize(count, "frame(s) labelled"))
    if interruption.signal is None:
        if source.total and count < source.total:
            print(
                f"warning: --video={values.video} ended after {count} of "
                f"{source.total} frames",
                file=sys.stderr,
            )
    elif not video.is_camera:
        sys.exit(interruption.exit_status)


def _frames_dir(values: absl_flags.FlagValues, video: Video) -> str:
    return os.path.join(values.output_dir, f"{video.name}_labels")


def claim_existing(
    folder: str, pattern: str, overwrite: bool, inputs: Iterable[str] = ()
) -> None:
    """Claims the files whose name matches a pattern, if their number is unknown."""
    existing = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    names = [name for name in existing if re.fullmatch(pattern, name)]
    outputs.claim(folder, names, overwrite, inputs)


def _claim_video_files(values: absl_flags.FlagValues, video: Video) -> None:
    """Claims the outputs of a video."""
    names = [writers.make_overlay_name(video)]
    outputs.claim(values.output_dir, names, values.overwrite, inputs=[values.video])
    if values.save_frames:
        folder = _frames_dir(values, video)
        claim_existing(folder, r"\d{6,}\.png", values.overwrite)


def _number_frames(
    video: Video, max_frames: int | None, interruption: Interruption
) -> Images:
    """Returns the numbered frames until the end, the limit or a signal."""
    totals = [total for total in (video.count, max_frames) if total]
    frames = itertools.takewhile(
        lambda _: interruption.signal is None, itertools.islice(video, max_frames)
    )
    numbered = ((f"{i:06d}", frame) for i, frame in enumerate(frames))
    return Images(numbered, min(totals, default=None), "frame")


def main(values: absl_flags.FlagValues) -> None:
    """Labels every image or frame."""
    flags.check_flags(values, "predict")
    if values.video:
        _label_video(values)
    else:
        _label_images(values)
