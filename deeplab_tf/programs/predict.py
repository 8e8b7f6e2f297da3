"""Labels images with a SavedModel, a checkpoint or a training.

    python -m deeplab_tf.predict --model=logs --images='photos/*.jpg' --output_dir=out

For `photo.jpg` it writes `photo_label.png` (class ids), `photo_color.png` (the
same with the palette, as VOC keeps labels) and `photo_overlay.png` (the photo
with colours and a legend); `overview.png` shows the first overlays together.
Photographs are turned upright as their EXIF says.
"""

import io
import os

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from PIL import Image
from tqdm import tqdm

from deeplab_tf import flags, visualize
from deeplab_tf.data.info import DatasetInfo, generic_info
from deeplab_tf.data.pictures import PICTURE_FORMATS, decode_image, exif_orientation
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.programs import run_program
from deeplab_tf.programs.restored import (
    experiment_of,
    named_classes,
    require_channels,
    restored_model,
)
from deeplab_tf.serving import saved_model

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


def _define() -> None:
    flags.define_model_flags(FLAGS, "predict")
    for name, text in (
        ("model", "SavedModel, checkpoint or train_logdir."),
        ("images", "File, folder or glob of JPEG and PNG images."),
        ("output_dir", "Folder of the pictures."),
    ):
        absl_flags.DEFINE_string(name, None, text, required=True, flag_values=FLAGS)
    absl_flags.DEFINE_string(
        "dataset",
        None,
        "Dataset whose class names and colours are shown; default: the model's.",
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


def find_images(pattern: str) -> list[str]:
    """Returns the images of a file, a folder or a glob, sorted.

    Raises:
        UserError: if there is none, or two would be written to one name.
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
    stems: dict[str, str] = {}
    for path in paths:
        other = stems.setdefault(_stem(path), path)
        if other != path:
            raise UserError(f"{other} and {path} would be written to the same name")
    return paths


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _labeler(values: absl_flags.FlagValues):
    """Returns `uint8 [1, h, w, 3] -> int32 [1, h, w]` and the model's classes."""
    if saved_model.is_saved_model(values.model):
        given = [
            name for name in (*flags.MODEL_FLAGS, "preset") if _present(values, name)
        ]
        if given:
            raise UserError(f"--{given[0]} has no effect on a SavedModel; leave it out")
        info = saved_model.export_info(values.model) or generic_info(255)
        labeler = saved_model.load_labeler(values.model)
        return labeler, named_classes(values.dataset, info, info.num_classes)
    model = restored_model(values, values.model)
    require_channels(model, 3, "image files, read as RGB,")
    experiment = experiment_of(values.model)
    known = experiment.info if experiment else None
    labels = tf.function(
        Predictor(model).labels,
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


def main(values: absl_flags.FlagValues) -> None:
    """Labels every image."""
    flags.check_flags(values, "predict")
    paths = find_images(values.images)
    for path in paths:
        check_image(path)
    label, info = _labeler(values)
    tf.io.gfile.makedirs(values.output_dir)
    overlays = []
    for path in tqdm(paths, desc="predicting", unit="img"):
        image = read_image(path)
        labels = label(image[None])[0]
        prefix = os.path.join(values.output_dir, _stem(path))
        laid_over = write_pictures(image, labels, info, prefix)
        if len(overlays) < _SHOWN:
            overlays.append(laid_over)
    overview = os.path.join(values.output_dir, "overview.png")
    _write(overview, visualize.png_bytes(visualize.contact_sheet(overlays)))
    print(f"{len(paths)} images labelled; the first {len(overlays)}: {overview}")


def run() -> None:
    """Console entry."""
    run_program(main, FLAGS)
