"""Labels images or a video with a SavedModel, a checkpoint or a training.

    python -m deeplab_tf.predict --model=logs --images='photos/*.jpg' --output_dir=out
    python -m deeplab_tf.predict --model=logs --video=drive.mp4 --output_dir=out

For `photo.jpg` it writes `photo_label.png` (class ids), `photo_color.png` (the
same with the palette, as VOC keeps labels) and `photo_overlay.png` (the photo
with colours and a legend); `overview.png` shows the first overlays together.
Photographs are turned upright as their EXIF says.

Of `drive.mp4` it writes `drive_overlay.mp4`, all frames with colours; a camera, such
as --video=0, is labelled until --max_frames or Ctrl-C.

With --submission and --submission_file it packs the labels of the images that
--image_list names, as the server of a benchmark takes them.
"""

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from deeplab_tf import flags, visualize
from deeplab_tf.config import EvalConfig
from deeplab_tf.data.info import DatasetInfo, generic_info
from deeplab_tf.data.pictures import PICTURE_FORMATS, decode_image, exif_orientation
from deeplab_tf.data.videos import Video, read_video, write_video
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.submission import SUBMISSIONS
from deeplab_tf.inference import Predictor
from deeplab_tf.programs import run_program
from deeplab_tf.programs.restored import (
    experiment_of,
    named_classes,
    require_channels,
    restored_model,
)
from deeplab_tf.serving import saved_model
from deeplab_tf.training.interruption import Interruption

FLAGS = absl_flags.FlagValues()
_SUFFIXES = (".jpg", ".jpeg", ".png")
# Larger pictures are refused from their header, before they fill the memory.
_MOST_PIXELS = 100_000_000
_SHOWN = 12
# EXIF orientation -> how to turn the stored picture upright.
_UPRIGHT = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 1),
}


# Of a checkpoint; an export has its own.
_EVALUATION = {
    "eval_scales": "Scales whose probabilities are averaged.",
    "add_flipped_images": "Whether every scale is also seen mirrored.",
}
# Flags that mean nothing without another.
_BELONGS_TO = {
    "image_list": "images",
    "submission": "images",
    "submission_file": "submission",
    "max_frames": "video",
    "save_frames": "video",
}
# A legend's text is at least as high, and the higher the larger the video; a legend
# that is higher than this share of the video is left out.
_LEAST_FONT, _FONTS_PER_SIDE, _MOST_LEGEND = 13, 54, 0.5


def _define() -> None:
    flags.define_model_flags(FLAGS, "predict")
    flags.define_fields(FLAGS, EvalConfig, _EVALUATION)
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    string(
        "model",
        None,
        "SavedModel, checkpoint or train_logdir.",
        required=True,
        flag_values=FLAGS,
    )
    for name, text in (
        ("images", "File, folder or glob of JPEG and PNG images."),
        ("image_list", "Text file that names those --images to label; default: all."),
        ("video", "Video file, or number of a camera, in the place of --images."),
        ("output_dir", "Folder of the pictures or of the video."),
        ("submission_file", "Archive of the label maps for --submission."),
        (
            "dataset",
            "Dataset whose class names and colours are shown; default: the model's.",
        ),
    ):
        string(name, None, text, flag_values=FLAGS)
    absl_flags.DEFINE_enum(
        "submission",
        None,
        sorted(SUBMISSIONS),
        "Benchmark whose server takes the labels of --images.",
        flag_values=FLAGS,
    )
    for name, default, text in (
        (
            "batch_size",
            1,
            "Images of one size, or frames, per forward pass; it moves single pixels "
            "in millions, by rounding.",
        ),
        ("max_frames", None, "Frames after which a video ends."),
    ):
        integer(name, default, text, lower_bound=1, flag_values=FLAGS)
    absl_flags.DEFINE_boolean(
        "save_frames",
        False,
        "Whether the labels of every frame are also written as a PNG with a palette.",
        flag_values=FLAGS,
    )


_define()


def check_image(path: str) -> None:
    """Refuses a file that is no picture or too large, by its header.

    Raises:
        UserError: naming the file.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        _opened(file, path)


def _opened(file, path: str) -> Image.Image:
    """Returns a picture of which only the header was read."""
    try:
        picture = Image.open(file)
    except (
        *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
        tf.errors.OutOfRangeError,  # how a GFile ends
    ) as error:
        raise UserError(f"{path} is no picture: {error}") from error
    if picture.format not in PICTURE_FORMATS:
        raise UserError(f"{path} is {picture.format}; JPEG and PNG are read")
    if picture.width * picture.height > _MOST_PIXELS:
        raise UserError(
            f"{path} has {picture.width}x{picture.height} pixels; at most "
            f"{_MOST_PIXELS:,} are read"
        )
    return picture


def read_image(path: str) -> np.ndarray:
    """Returns an image file upright, uint8 RGB `[height, width, 3]`.

    Raises:
        UserError: if the file is no JPEG or PNG, broken, or too large.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    picture = _opened(io.BytesIO(content), path)
    try:
        picture.load()  # tells a broken file in one line, TensorFlow in several
        orientation = exif_orientation(content)
        image = decode_image(tf.constant(content)).numpy()
    except (OSError, SyntaxError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise UserError(f"{path} is broken: {error}") from error
    return np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(image))


def find_images(pattern: str, image_list: str | None = None) -> list[str]:
    """Returns the images of a file, a folder or a glob, sorted.

    Args:
        pattern: The file, folder or glob.
        image_list: Text file of their names without suffix, if only some are wanted.

    Raises:
        UserError: if there is none, one of the list is missing, or two would be
            written to one name.
    """
    if tf.io.gfile.isdir(pattern):
        names = tf.io.gfile.listdir(pattern)
        paths = [os.path.join(pattern, name) for name in names]
    elif tf.io.gfile.exists(pattern):  # its name may hold brackets
        paths = [pattern]
    else:
        paths = tf.io.gfile.glob(pattern)
    paths = sorted(p for p in paths if p.lower().endswith(_SUFFIXES))
    if not paths:
        raise UserError(f"--images={pattern} matches no JPEG or PNG file")
    if image_list:
        paths = _listed(paths, image_list)
    stems: dict[str, str] = {}
    for path in paths:
        other = stems.setdefault(_stem(path), path)
        if other != path:
            raise UserError(f"{other} and {path} would be written to the same name")
    return paths


def _listed(paths: list[str], image_list: str) -> list[str]:
    """Returns those paths whose names a text file lists."""
    with tf.io.gfile.GFile(image_list, "rb") as file:
        content = file.read()
    try:
        names = content.decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{image_list} is no UTF-8 text: {error}") from error
    if not names:
        raise UserError(f"{image_list} names no image")
    found = {_stem(path) for path in paths}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{missing[0]} of {image_list} is not among --images; {len(missing)} of "
            f"its {len(names)} names are missing"
        )
    wanted = set(names)
    return [path for path in paths if _stem(path) in wanted]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _labeler(values: absl_flags.FlagValues):
    """Returns `uint8 [b, h, w, 3] -> int32 [b, h, w]` and the model's classes."""
    if saved_model.is_saved_model(values.model):
        names = (*flags.MODEL_FLAGS, "preset", *_EVALUATION)
        given = [name for name in names if _present(values, name)]
        if given:
            raise UserError(f"--{given[0]} has no effect on a SavedModel; leave it out")
        info = saved_model.export_info(values.model) or generic_info(255)
        labeler = saved_model.load_labeler(values.model)
        return labeler, named_classes(values.dataset, info, info.num_classes)
    preset = flags.chosen_preset(values)
    config = EvalConfig(
        **flags.field_values(values, _EVALUATION, preset and preset.evaluation)
    )
    model = restored_model(values, values.model)
    require_channels(model, 3, "image files, read as RGB,")
    experiment = experiment_of(values.model)
    known = experiment.info if experiment else None
    labels = tf.function(
        Predictor(model, config.eval_scales, config.add_flipped_images).labels,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
    )
    return (
        lambda images: labels(images).numpy(),
        named_classes(values.dataset, known, model.model_config.num_classes),
    )


def _present(values, name: str) -> bool:
    return name in values and values[name].present


def write_pictures(
    image: np.ndarray, labels: np.ndarray, info: DatasetInfo, prefix: str
) -> np.ndarray:
    """Writes `<prefix>_label.png`, `_color.png` and `_overlay.png`.

    Args:
        image: uint8 RGB `[height, width, 3]`.
        labels: Class ids `[height, width]`.
        info: Names and colours of the classes.
        prefix: Path of the pictures up to the underscore.

    Returns:
        The overlay with its legend, uint8 `[h, w, 3]`.
    """
    laid_over = visualize.overlay(image, labels, info)
    with_legend = visualize.add_legend(laid_over, labels, info)
    _write(f"{prefix}_label.png", visualize.png_bytes(labels.astype(np.uint8)))
    _write(f"{prefix}_color.png", visualize.palette_png_bytes(labels, info))
    _write(f"{prefix}_overlay.png", visualize.png_bytes(with_legend))
    return with_legend


def _write(path: str, content: bytes) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


# Name, uint8 RGB `[h, w, 3]` and labels `[h, w]` of an image that was labelled.
_Sink = Callable[[str, np.ndarray, np.ndarray], None]


@contextlib.contextmanager
def _pictures(folder: str, info: DatasetInfo) -> Iterator[_Sink]:
    """Writes the pictures of every image, and at the end some together."""
    tf.io.gfile.makedirs(folder)
    overlays = []

    def add(name, image, labels):
        laid_over = write_pictures(image, labels, info, os.path.join(folder, name))
        if len(overlays) < _SHOWN:
            overlays.append(laid_over)

    yield add
    overview = os.path.join(folder, "overview.png")
    _write(overview, visualize.png_bytes(visualize.contact_sheet(overlays)))
    print(f"written: {overview}, the first {len(overlays)}")


@contextlib.contextmanager
def _submission(benchmark: str, path: str, info: DatasetInfo) -> Iterator[_Sink]:
    """Packs the labels of every image."""
    with SUBMISSIONS[benchmark](path, info) as submission:
        yield lambda name, image, labels: submission.add(name, labels)
    print(f"written: {path}, for the server of {benchmark}")


@contextlib.contextmanager
def _overlay_video(folder: str, video: Video, info: DatasetInfo) -> Iterator[_Sink]:
    """Writes every frame with its colours, above a legend that stays the same."""
    tf.io.gfile.makedirs(folder)
    path = os.path.join(folder, f"{video.name}_overlay.mp4")
    height, width = video.size
    legend = _legend(info, height, width)
    with write_video(path, video.rate, (height + len(legend), width)) as write:

        def add(name, image, labels):
            write(np.concatenate([visualize.overlay(image, labels, info), legend]))

        yield add
    print(f"written: {path}")


@contextlib.contextmanager
def _label_maps(folder: str, info: DatasetInfo) -> Iterator[_Sink]:
    """Writes the labels of every frame, as VOC keeps them."""
    tf.io.gfile.makedirs(folder)

    def add(name, image, labels):
        path = os.path.join(folder, f"{name}.png")
        _write(path, visualize.palette_png_bytes(labels, info))

    yield add
    print(f"written: {folder}")


def _legend(info: DatasetInfo, height: int, width: int) -> np.ndarray:
    """Returns all classes that an overlay colours, for below a video.

    Returns:
        uint8 `[legend height, width, 3]`, of no height where it would be too high.
    """
    classes = zip(info.class_names, info.colors, strict=True)
    classes = [(name, color) for name, color in classes if name != "background"]
    size = max(_LEAST_FONT, min(height, width) // _FONTS_PER_SIDE)
    font = ImageFont.load_default(size)
    line, box, margin = size * 3 // 2, size, size // 2
    longest = max((font.getlength(name) for name, _ in classes), default=0)
    cell = int(box + 2 * margin + longest + margin)
    columns = max(1, (width - margin) // cell)
    legend_height = line * -(-len(classes) // columns) + margin
    if legend_height > _MOST_LEGEND * height:
        return np.zeros((0, width, 3), np.uint8)
    canvas = Image.new("RGB", (width, legend_height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, color) in enumerate(classes):
        left, top = margin + i % columns * cell, margin + i // columns * line
        corners = (left, top, left + box, top + box)
        draw.rectangle(corners, fill=tuple(map(int, color)), outline="black")
        middle = (left + box + margin, top + box / 2)
        draw.text(middle, name, fill="black", font=font, anchor="lm")
    return np.array(canvas)


class _Source(NamedTuple):
    """Images to label.

    Attributes:
        images: Name and pixels, uint8 RGB `[h, w, 3]`, of each.
        total: How many they are, None where that is not known.
        unit: What to call one.
    """

    images: Iterable[tuple[str, np.ndarray]]
    total: int | None
    unit: str


def _batches(images, size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Yields images that follow each other and have one size, in their order."""
    batch = []
    for name, image in images:
        if batch and image.shape != batch[0][1].shape:
            yield batch
            batch = []
        batch.append((name, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _label(source: _Source, labeler, batch_size: int, sinks: Iterable[_Sink]) -> int:
    """Labels images, hands them to the sinks and returns how many they were."""
    batches = _batches(source.images, batch_size)
    with (
        ThreadPoolExecutor(1) as reader,
        tqdm(total=source.total, desc="predicting", unit=source.unit) as progress,
    ):
        batch = next(batches, None)
        while batch:
            # Read while the model works.
            following = reader.submit(next, batches, None)
            names, images = zip(*batch, strict=True)
            labels = labeler(np.stack(images))
            for labelled in zip(names, images, labels, strict=True):
                for sink in sinks:
                    sink(*labelled)
            progress.update(len(batch))
            batch = following.result()
    return progress.n


def _label_images(values: absl_flags.FlagValues) -> None:
    """Labels image files."""
    paths = find_images(values.images, values.image_list)
    for path in paths:
        check_image(path)
    labeler, info = _labeler(values)
    images = ((_stem(path), read_image(path)) for path in paths)
    sinks = []
    with contextlib.ExitStack() as stack:
        if values.submission:
            archive = _submission(values.submission, values.submission_file, info)
            sinks.append(stack.enter_context(archive))
        if values.output_dir:
            sinks.append(stack.enter_context(_pictures(values.output_dir, info)))
        source = _Source(images, len(paths), "img")
        count = _label(source, labeler, values.batch_size, sinks)
    print(f"{count} images labelled")


def _label_video(values: absl_flags.FlagValues) -> None:
    """Labels a video, or what a camera sees until it is told to end.

    Ctrl-C and SIGTERM end a file before its end, hence the exit status.
    """
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(read_video(values.video))
        labeler, info = _labeler(values)
        sinks = [stack.enter_context(_overlay_video(values.output_dir, video, info))]
        if values.save_frames:
            folder = os.path.join(values.output_dir, f"{video.name}_labels")
            sinks.append(stack.enter_context(_label_maps(folder, info)))
        interruption = stack.enter_context(Interruption())
        source = _frames(video, values.max_frames, interruption)
        count = _label(source, labeler, values.batch_size, sinks)
    print(f"{count} frames labelled")
    if interruption.signal is None:
        _warn_of_an_early_end(values.video, count, source.total)
    elif not video.is_camera:
        sys.exit(interruption.exit_status)


def _warn_of_an_early_end(video: str, count: int, total: int | None) -> None:
    if total and count < total:
        print(
            f"warning: --video={video} ended after {count} of {total} frames",
            file=sys.stderr,
        )


def _frames(
    video: Video, max_frames: int | None, interruption: Interruption
) -> _Source:
    """Returns the numbered frames until an end of any kind."""
    totals = [total for total in (video.count, max_frames) if total]
    frames = itertools.takewhile(
        lambda _: interruption.signal is None, itertools.islice(video, max_frames)
    )
    numbered = ((f"{i:06d}", frame) for i, frame in enumerate(frames))
    return _Source(numbered, min(totals, default=None), "frame")


def _check_choice(values: absl_flags.FlagValues) -> None:
    """Refuses flags that do not go together."""
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


def run() -> None:
    """Console entry."""
    run_program(main, FLAGS)
