"""Generates scenes of overlapping shapes, in the folder layout of PASCAL VOC.

Each scene has two to five overlapping objects on a textured, slightly blurred
background. A class is an outline and a texture, of random size, rotation and contrast.
Colour alone does not separate the classes: each only tends towards a hue. As in PASCAL
VOC, the pixels along every contour are void (255).
"""

import os
import pathlib
import shutil
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from deeplab_tf.data import info as dataset_info
from deeplab_tf.errors import UserError

SPLITS = ("train", "val", "test")
IGNORE_LABEL = 255
MIN_SIDE = 32  # pixels; in smaller images most pixels would be void

_OBJECTS = (2, 5)  # per scene
_SIZES = (0.18, 0.46)  # square root of an object's area, per shorter image side
_MIN_VISIBLE = 0.5  # of an object's own area, after cropping and occlusion
_VOID_RADIUS = 2  # pixels, on either side of a contour
_HUE_SPREAD = 32  # degrees around the hue of a class; classes are 60 apart
_PERIODS = (0.05, 0.075)  # of an object's texture, per shorter image side
_JPEG_QUALITY = 95
_SHIFT = 4  # fractional bits of the coordinates given to OpenCV


# Outlines: contours around the origin. All but the first are holes.


def _make_polygon(count):
    """Returns the corners of a regular polygon of radius 1, `[count, 2]`."""
    angle = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _make_star(tips, inner):
    """Returns a star of outer radius 1 and inner radius `inner`."""
    star = _make_polygon(2 * tips)
    star[1::2] *= inner
    return star


def _make_cross(arm):
    """Returns a Greek cross of half arm width `arm`."""
    quarter = np.array([(1, -arm), (1, arm), (arm, arm)])
    return np.concatenate([quarter @ [(c, s), (-s, c)] for c, s in _make_polygon(4)])


def _scale_to_unit_area(*contours):
    """Returns the contours, scaled to enclose an area of one."""
    areas = [cv2.contourArea(c.astype(np.float32)) for c in contours]
    return [c / np.sqrt(areas[0] - sum(areas[1:])) for c in contours]


# Textures: values in 0..1 from coordinates in an object's own frame, with a period of
# about one unit. Each repeats within the smallest object and survives the blur, so that
# a short training run can learn it.


def _make_wave(x):
    """Returns a wave of period 1, flatter at its extremes than a sine."""
    return np.clip(0.5 + np.sin(np.float32(2 * np.pi) * x), 0, 1)


def _draw_rings(rng, x, y):
    """Returns concentric rings, 0..1, at coordinates x and y in periods."""
    return _make_wave(np.float32(1.2) * np.hypot(x, y))


def _draw_checkerboard(rng, x, y):
    """Returns a checkerboard, 0..1, at coordinates x and y in periods."""
    wave = np.sin(np.float32(4.5) * x) * np.sin(np.float32(4.5) * y)
    return np.clip(0.5 + 3 * wave, 0, 1)


def _draw_stripes(rng, x, y):
    """Returns parallel stripes, 0..1, at coordinates x and y in periods."""
    return _make_wave(np.float32(1.5) * x)


def _draw_spokes(rng, x, y):
    """Returns 10 to 14 radial stripes, 0..1, at coordinates x and y."""
    return _make_wave(np.arctan2(y, x) * np.float32(rng.integers(10, 15) / (2 * np.pi)))


def _draw_dots(rng, x, y):
    """Returns a grid of dots, 0..1, at coordinates x and y in periods."""
    wave = np.cos(np.float32(7.5) * x) + np.cos(np.float32(7.5) * y)
    return np.clip(2 * wave - 0.9, 0, 1)


def _draw_zigzag(rng, x, y):
    """Returns zigzag stripes, 0..1, at coordinates x and y in periods."""
    return _make_wave(np.float32(1.2) * x + np.abs(np.float32(1.2) * y % 2 - 1))


def _draw_satin(rng, x, y):
    """Returns a slow horizontal gradient, 0..1, at coordinates x and y."""
    return np.clip(0.5 + 0.05 * x, 0, 1)


def _draw_speckle(rng, x, y):
    """Returns irregular spots, 0..1, in the shape of x."""
    return np.clip(6 * _draw_noise(rng, x.shape, int(rng.integers(24, 36))) - 3.3, 0, 1)


# In the order of their hues, which separates similar textures.
_CLASSES = {
    "disc": (_scale_to_unit_area(_make_polygon(48)), _draw_rings),
    "cross": (_scale_to_unit_area(_make_cross(0.3)), _draw_dots),
    "triangle": (_scale_to_unit_area(_make_polygon(3)), _draw_stripes),
    "ring": (
        _scale_to_unit_area(_make_polygon(48), 0.5 * _make_polygon(48)),
        _draw_spokes,
    ),
    "star": (_scale_to_unit_area(_make_star(5, 0.45)), _draw_zigzag),
    "square": (_scale_to_unit_area(_make_polygon(4)), _draw_checkerboard),
}
CLASS_NAMES = ("background", *_CLASSES)
_OUTLINES, _TEXTURES = zip(*_CLASSES.values(), strict=True)
_BACKGROUNDS = (*_TEXTURES, _draw_satin, _draw_speckle)


# Layout of the objects.


class _Object(NamedTuple):
    """A placed object; `mask` is its coverage of each pixel, 0..255."""

    class_id: int
    center: np.ndarray
    angle: float
    size: float
    mask: np.ndarray


def _place_object(rng, image_size):
    """Returns an object of random class, position, size and rotation."""
    class_id = int(rng.integers(1, len(CLASS_NAMES)))
    size = min(image_size) * rng.uniform(*_SIZES)
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.1)
    center = rng.uniform(0.1, 0.9, 2) * image_size[::-1]
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    frame = size * turn * (squeeze, 1 / squeeze)
    contours = [contour @ frame + center for contour in _OUTLINES[class_id - 1]]
    contours = [np.round(contour * 2**_SHIFT).astype(np.int32) for contour in contours]
    mask = np.zeros(image_size, np.uint8)
    cv2.fillPoly(mask, contours, 255, cv2.LINE_AA, _SHIFT)
    return _Object(class_id, center, angle, size, mask)


def _place_objects(rng, image_size):
    """Returns objects, back to front, and a map of the topmost one per pixel.

    An object that would be hidden too much, or hide another too much, is replaced. The
    map numbers objects from 1; 0 is the background.
    """
    objects, top = [], np.zeros(image_size, np.uint8)
    count = int(rng.integers(*_OBJECTS, endpoint=True))
    for _ in range(20 * count):
        trial = [*objects, _place_object(rng, image_size)]
        over = np.where(trial[-1].mask > 127, np.uint8(len(trial)), top)
        visible = np.bincount(over.ravel(), minlength=len(trial) + 1)[1:]
        if np.all(visible >= [_MIN_VISIBLE * item.size**2 for item in trial]):
            objects, top = trial, over
        if len(objects) == count:
            break
    return objects, top


def _make_label(objects, top):
    """Returns class ids, void within `_VOID_RADIUS` of every contour."""
    label = np.array([0, *(item.class_id for item in objects)], np.uint8)[top]
    side = 2 * _VOID_RADIUS + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    label[cv2.dilate(top, kernel) != cv2.erode(top, kernel)] = IGNORE_LABEL
    return label


# Appearance. Images are float32 RGB in 0..1.


def _draw_noise(rng, image_size, cells):
    """Returns smooth noise in 0..1 with about `cells` bumps per side."""
    grid = rng.random((cells + 1, cells + 1), np.float32)
    noise = cv2.resize(grid, image_size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(noise, 0, 1)


def _rotate_frame(image_size, center, angle, period):
    """Returns x and y of every pixel in a rotated frame, in units of `period`."""
    x = np.arange(image_size[1], dtype=np.float32) - np.float32(center[0])
    y = np.arange(image_size[0], dtype=np.float32)[:, None] - np.float32(center[1])
    cos, sin = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    return cos * x + sin * y, cos * y - sin * x


def _random_color(rng, hue, saturation):
    """Returns a random colour of a hue in degrees, neither too dark nor too bright."""
    hsv = (hue % 360, rng.uniform(*saturation), rng.uniform(0.35, 0.95))
    return cv2.cvtColor(np.float32([[hsv]]), cv2.COLOR_HSV2RGB)[0, 0]


def _draw_material(rng, texture, color, frame, contrast):
    """Returns a surface that alternates between a colour and a darker shade of it."""
    dark = color * rng.uniform(*contrast) + rng.normal(0, 0.06, 3)
    change = (np.clip(dark, 0, 1) - color).astype(np.float32)
    surface = color + texture(rng, *frame)[..., None] * change
    grain = _draw_noise(rng, surface.shape[:2], int(rng.integers(20, 60)))[..., None]
    return surface * (0.92 + 0.16 * grain)


def _draw_background(rng, image_size):
    """Returns a large, warped texture, dull and slightly out of focus."""
    side = min(image_size)
    center = rng.uniform(-0.3, 1.3, 2) * image_size[::-1]
    period = side * rng.uniform(0.1, 0.25)
    x, y = _rotate_frame(image_size, center, rng.uniform(0, 2 * np.pi), period)
    warp = np.float32(rng.uniform(0, 1.5))
    frame = [axis + warp * _draw_noise(rng, image_size, 4) for axis in (x, y)]
    texture = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    color = _random_color(rng, rng.uniform(0, 360), (0.05, 0.5))
    image = _draw_material(rng, texture, color, frame, (0.65, 0.95))
    return cv2.GaussianBlur(image, (0, 0), side * rng.uniform(0.004, 0.012))


def _choose_object_color(rng, class_id, under):
    """Samples three colours of a class; returns the one farthest from `under`."""
    class_hue = (class_id - 1) * 360 / len(_CLASSES)
    hues = rng.normal(class_hue, _HUE_SPREAD, 3)
    colors = [_random_color(rng, hue, (0.35, 0.9)) for hue in hues]
    return max(colors, key=lambda color: float(np.sum((color - under) ** 2)))


def _shade_relief(rng, mask, light):
    """Returns brightness factors of an object with a rounded rim, lit from a side."""
    rim = np.float32(rng.uniform(0.025, 0.08) * min(mask.shape) + 1.5)
    depth = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 3)
    slope = 1 - np.minimum(depth / rim, 1)
    height = cv2.GaussianBlur(rim * np.sqrt(1 - slope * slope), (0, 0), 1.0)
    facing = light[0] * cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    facing += light[1] * cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    return np.clip(1 - 0.45 * facing, 0.5, 1.5)


def _cast_shadow(rng, alpha, light):
    """Returns the factors of light that remain around an object of this coverage."""
    throw = float(rng.uniform(0.015, 0.04) * min(alpha.shape))
    move = np.float32([(1, 0, throw * light[0]), (0, 1, throw * light[1])])
    shadow = cv2.warpAffine(alpha, move, alpha.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), throw)
    return 1 - np.float32(rng.uniform(0.3, 0.6)) * shadow


def _paint_object(rng, image, item, light):
    """Returns the image with one object and its soft shadow on top."""
    under = np.float32(cv2.mean(image, item.mask)[:3])
    color = _choose_object_color(rng, item.class_id, under)
    period = min(item.mask.shape) * rng.uniform(*_PERIODS)
    frame = _rotate_frame(item.mask.shape, item.center, item.angle, period)
    surface = _draw_material(
        rng, _TEXTURES[item.class_id - 1], color, frame, (0.2, 0.5)
    )
    surface *= _shade_relief(rng, item.mask, light)[..., None]
    alpha = item.mask.astype(np.float32) / 255
    image = image * _cast_shadow(rng, alpha, light)[..., None]
    return image + alpha[..., None] * (surface - image)


def _add_camera_effects(rng, image):
    """Adds uneven lighting, a soft lens and sensor noise; returns uint8 pixels."""
    side = float(max(image.shape))
    center = (image.shape[1] / 2, image.shape[0] / 2)
    ramp, _ = _rotate_frame(image.shape[:2], center, rng.uniform(0, 2 * np.pi), side)
    image = image * (1 + np.float32(rng.uniform(0, 0.5)) * ramp)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.6))
    noise = rng.standard_normal(image.shape, np.float32)
    image += np.float32(rng.uniform(0.005, 0.025)) * noise
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)


def draw_scene(rng, image_size):
    """Returns an RGB scene `[height, width, 3]` and its class ids `[height, width]`.

    Both are uint8; the ids are 255 along every contour. The generator `rng` is the only
    source of randomness.
    """
    image_size = tuple(image_size)
    objects, top = _place_objects(rng, image_size)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.float32([np.cos(angle), np.sin(angle)])
    image = _draw_background(rng, image_size)
    for item in objects:
        image = _paint_object(rng, image, item, light)
    return _add_camera_effects(rng, image), _make_label(objects, top)


# Files.

_PALETTE = [value for color in dataset_info.voc_colors(256) for value in color]


def _save(folder, name, image, label):
    """Writes an image and its labels, a PNG with VOC's palette."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.tobytes())
    png = Image.fromarray(label)
    png.putpalette(_PALETTE)
    png.save(folder / "SegmentationClass" / f"{name}.png")


def _write_folder(folder, split_sizes, image_size, seed):
    """Writes a dataset into a new folder and returns its description."""
    lists = folder / "ImageSets" / "Segmentation"
    for subfolder in (lists, folder / "JPEGImages", folder / "SegmentationClass"):
        subfolder.mkdir(parents=True)
    names = {}
    for number, (split, count) in enumerate(split_sizes.items()):
        names[split] = [f"{split}_{index:05d}" for index in range(count)]
        for index, name in enumerate(names[split]):
            rng = np.random.default_rng((seed, number, index))
            _save(folder, name, *draw_scene(rng, image_size))
    names["trainval"] = names["train"] + names["val"]
    for split, members in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in members))
    sizes = {split: len(members) for split, members in names.items()}
    info = dataset_info.DatasetInfo("shapes", CLASS_NAMES, split_sizes=sizes)
    (folder / "dataset_info.json").write_text(info.to_json())
    return info


def _check_settings(output_dir, split_sizes, image_size, seed):
    """Raises `UserError` for invalid settings."""
    for split, count in split_sizes.items():
        if count < 1:
            raise UserError(f"{split}_images must be at least 1; received {count}")
    if len(image_size) != 2 or min(image_size) < MIN_SIDE:
        raise UserError(
            f"image_size must be height,width of at least {MIN_SIDE} each; "
            f"received {tuple(image_size)}"
        )
    if seed < 0:
        raise UserError(f"seed must not be negative; received {seed}")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output_dir must be a folder; {output_dir} is a file")
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"output_dir must be empty or new; {output_dir} has files")


def write(
    output_dir,
    train_images=1600,
    val_images=200,
    test_images=200,
    image_size=(128, 128),
    seed=0,
):
    """Writes the dataset and returns its `DatasetInfo`.

    The folder is published when it is complete. Scene `i` of a split depends only on
    `seed` and `image_size`, not on the number of scenes.

    Args:
        output_dir: Folder to create; it may exist if it is empty.
        train_images: Number of training scenes.
        val_images: Number of validation scenes.
        test_images: Number of test scenes; they have labels too.
        image_size: (height, width) of every scene, in pixels.
        seed: Random seed, 0 or more.

    Raises:
        UserError: if a setting is out of range or the folder is not empty.
    """
    counts = (train_images, val_images, test_images)
    split_sizes = dict(zip(SPLITS, counts, strict=True))
    output_dir = pathlib.Path(output_dir).resolve()
    _check_settings(output_dir, split_sizes, image_size, seed)
    partial = output_dir.with_name(f".{output_dir.name}.partial-{os.getpid()}")
    try:
        info = _write_folder(partial, split_sizes, image_size, seed)
        if output_dir.exists():
            output_dir.rmdir()
        partial.rename(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return info
