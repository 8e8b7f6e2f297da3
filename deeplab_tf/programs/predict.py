"""Labels images or a video with a training, a checkpoint or an exported model.

    python -m deeplab_tf.predict --model=logs --images='photos/*.jpg' --output_dir=out
    python -m deeplab_tf.predict --model=logs --video=drive.mp4 --output_dir=out

For `photo.jpg` it writes `photo_label.png` (class ids), `photo_color.png` (the same
with a palette, as in VOC) and `photo_overlay.png` (the image with colours and a
legend); `overview.png` shows the first overlays together. Images are rotated as their
EXIF says.

For `drive.mp4` it writes `drive_overlay.mp4`, all frames with colours; a camera, such
as --video=0, is labelled until --max_frames or Ctrl-C.

With --submission and --submission_file it packs the labels of the images in
--image_list for the server of a benchmark.
"""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo, dataset_info, generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import make_predictor
from deeplab_tf.evaluation.submission import SUBMISSIONS
from deeplab_tf.files import outputs
from deeplab_tf.images.inputs import check_image, find_images, image_name, read_image
from deeplab_tf.images.videos import Video, read_video
from deeplab_tf.labelling import writers
from deeplab_tf.labelling.batches import Images, label_images
from deeplab_tf.presets import report
from deeplab_tf.programs.checkpoint import (
    experiment_of,
    named_classes,
    require_channels,
    require_no_model_flags,
    restore_model,
)
from deeplab_tf.serving.formats import is_artefact, load_artefact
from deeplab_tf.training.interruption import Interruption
from deeplab_tf.windows import readable_limits

_FLAGS = {
    "model": (
        *(flags.STRING, None),
        "Train_logdir, checkpoint, SavedModel, TFLite or ONNX file.",
    ),
    "images": (flags.STRING, None, "File, folder or glob of JPEG and PNG images."),
    "image_list": (
        *(flags.STRING, None),
        "Text file that names those --images to label; default: all.",
    ),
    "video": (flags.STRING, None, "Video file, or number of a camera."),
    "output_dir": (flags.STRING, None, "Folder of the images or of the video."),
    "submission": (
        *(flags.one_of(*sorted(SUBMISSIONS)), None),
        "Benchmark whose server takes the labels of --images.",
    ),
    "submission_file": (
        *(flags.STRING, None),
        "Archive of the label maps for --submission.",
    ),
    "dataset": (
        *(flags.STRING, None),
        "Dataset whose class names and colours are shown; default: the model's.",
    ),
    "batch_size": (
        *(flags.at_least(1), 1),
        "Images of one size, or frames, per forward pass; it moves single pixels in "
        "millions, by rounding.",
    ),
    "max_frames": (flags.at_least(1), None, "Frames after which a video ends."),
    "save_frames": (
        *(flags.BOOLEAN, False),
        "Whether the labels of every frame are also written as a PNG with a palette.",
    ),
}
# Flags that mean nothing without another.
_BELONGS_TO = {
    "image_list": "images",
    "submission": "images",
    "submission_file": "submission",
    "max_frames": "video",
    "save_frames": "video",
}
# Where neither the model nor a flag gives the number of classes.
_MOST_CLASSES = 255

_Labeler = Callable[[np.ndarray], np.ndarray]


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_model_flags(values, "predict")
    flags.define_options(values, EvalConfig, flags.INFERENCE)
    flags.define_flags(values, _FLAGS)
    absl_flags.mark_flag_as_required("model", flag_values=values)
    flags.define_overwrite(values)
    return values


def _labeler(values: absl_flags.FlagValues) -> tuple[_Labeler, DatasetInfo]:
    """Returns `uint8 [b, h, w, 3] -> int32 [b, h, w]` and the model's classes."""
    is_exported = is_artefact(values.model)
    labeler, info = (_artefact_labeler if is_exported else _checkpoint_labeler)(values)
    if info.max_value != 255:
        raise UserError(
            f"{values.model} is of images with values of 0..{info.max_value}; image "
            "files are read as 8 bits here, of 0..255"
        )
    return labeler, info


def _artefact_labeler(values: absl_flags.FlagValues) -> tuple[_Labeler, DatasetInfo]:
    """Returns the labels and classes of an exported model."""
    require_no_model_flags(values, values.model, flags.INFERENCE)
    artefact = load_artefact(values.model)
    if artefact.channels != 3:
        raise UserError(
            f"{values.model} takes images of {artefact.channels} channels, not RGB"
        )
    return artefact.labels, _artefact_classes(artefact, values.dataset)


def _artefact_classes(artefact, dataset: str | None) -> DatasetInfo:
    """Returns names and colours for the classes of an exported model."""
    if artefact.num_classes is None:
        if dataset is None:
            return generic_info(_MOST_CLASSES)
        artefact.num_classes = dataset_info(dataset).num_classes
    return named_classes(dataset, artefact.info, artefact.num_classes)


def _checkpoint_labeler(values: absl_flags.FlagValues) -> tuple[_Labeler, DatasetInfo]:
    """Returns the labels and classes of a checkpoint."""
    preset = flags.chosen_preset(values)
    base = preset.evaluation if preset else EvalConfig()
    config = flags.read_options(values, EvalConfig, base)
    model = restore_model(values, values.model)
    require_channels(model, 3, "image files, read as RGB,")
    if preset:
        parts = [(preset.eval_model, model.model_config), (base, config)]
        print(report(preset, parts))
    experiment = experiment_of(values.model)
    known = experiment.info if experiment else None
    info = named_classes(values.dataset, known, model.model_config.num_classes)
    return _compiled(model, config), info


def _compiled(model, config: EvalConfig) -> _Labeler:
    """Returns the compiled labels of a model with its inference protocol."""
    compiled = tf.function(
        make_predictor(model, config).labels,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
    )

    def labels(images):
        with readable_limits():
            return compiled(images).numpy()

    return labels


def _label_images(values: absl_flags.FlagValues) -> None:
    """Labels image files."""
    paths = find_images(values.images, values.image_list)
    for path in paths:
        check_image(path)
    if values.output_dir:
        names = writers.image_files(map(image_name, paths))
        outputs.claim(values.output_dir, names, values.overwrite, inputs=paths)
    labeler, info = _labeler(values)
    images = ((image_name(path), read_image(path)) for path in paths)
    with contextlib.ExitStack() as stack:
        opened = []
        if values.submission:
            archive = values.submission, values.submission_file
            opened.append(writers.write_submission(*archive, info, values.overwrite))
        if values.output_dir:
            opened.append(writers.write_images(values.output_dir, info))
        opened = [stack.enter_context(writer) for writer in opened]
        source = Images(images, len(paths), "img")
        count = label_images(source, labeler, values.batch_size, opened)
    print(f"{count} images labelled")


def _label_video(values: absl_flags.FlagValues) -> None:
    """Labels a video, or a camera until it is stopped.

    Ctrl-C and SIGTERM stop a file before its end, hence the exit status.
    """
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(read_video(values.video))
        _claim_video_files(values, video)
        labeler, info = _labeler(values)
        opened = [writers.write_overlay_video(values.output_dir, video, info)]
        if values.save_frames:
            opened.append(writers.write_label_maps(_frames_dir(values, video), info))
        opened = [stack.enter_context(writer) for writer in opened]
        interruption = stack.enter_context(Interruption())
        source = _frames(video, values.max_frames, interruption)
        count = label_images(source, labeler, values.batch_size, opened)
    print(f"{count} frames labelled")
    if interruption.signal is None:
        _warn_of_an_early_end(values.video, count, source.total)
    elif not video.is_camera:
        sys.exit(interruption.exit_status)


def _frames_dir(values: absl_flags.FlagValues, video: Video) -> str:
    return os.path.join(values.output_dir, f"{video.name}_labels")


def _claim_video_files(values: absl_flags.FlagValues, video: Video) -> None:
    names = [writers.overlay_file(video)]
    outputs.claim(values.output_dir, names, values.overwrite, inputs=[values.video])
    if values.save_frames:
        folder = _frames_dir(values, video)
        # How many frames there will be is not known.
        there = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
        names = [name for name in there if re.fullmatch(r"\d{6,}\.png", name)]
        outputs.claim(folder, names, values.overwrite)


def _warn_of_an_early_end(video: str, count: int, total: int | None) -> None:
    if total and count < total:
        print(
            f"warning: --video={video} ended after {count} of {total} frames",
            file=sys.stderr,
        )


def _frames(video: Video, max_frames: int | None, interruption: Interruption) -> Images:
    """Returns the numbered frames until the end, the limit or a signal."""
    totals = [total for total in (video.count, max_frames) if total]
    frames = itertools.takewhile(
        lambda _: interruption.signal is None, itertools.islice(video, max_frames)
    )
    numbered = ((f"{i:06d}", frame) for i, frame in enumerate(frames))
    return Images(numbered, min(totals, default=None), "frame")


def _check_choice(values: absl_flags.FlagValues) -> None:
    """Refuses flags that exclude or need each other."""
    if bool(values.images) == bool(values.video):
        received = "both" if values.images else "neither"
        raise UserError(f"give --images or --video; received {received}")
    for name, other in _BELONGS_TO.items():
        if values[name].value and not values[other].value:
            raise UserError(f"--{name} has no effect without --{other}")
    if values.submission and not values.submission_file:
        raise UserError("--submission_file is needed: the archive to write")
    if not values.output_dir and not values.submission:
        raise UserError("--output_dir is needed: the folder to write to")


def main(values: absl_flags.FlagValues) -> None:
    """Labels every image or frame."""
    flags.check_flags(values, "predict")
    _check_choice(values)
    if values.video:
        _label_video(values)
    else:
        _label_images(values)
