"""Procedural scenes of overlapping shapes, in the folder layout of PASCAL VOC.

Seven shapes of random colour, texture, size and rotation lie over one another
on a textured ground. What an object is follows from its outline alone: colours
and textures of all classes and of the ground come from the same distributions,
which `color_baseline` measures. As in PASCAL VOC, the pixels along every
contour are void (255).

    python -m datasets.shapes --output_dir=DIR
"""

import os
import pathlib
import shutil
import sys
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags
from PIL import Image

from deeplab_tf.data import info as dataset_infos
from deeplab_tf.errors import UserError

SPLITS = ("train", "val", "test")
IGNORE_LABEL = 255
MIN_SIDE = 32

_VOID_RADIUS = 2  # pixels, on either side of a contour
_OBJECTS = (2, 5)
_SIZES = (0.14, 0.45)  # square root of an object's area, per shorter image side
_MIN_VISIBLE = 0.4  # of an object's own area, after cropping and occlusion
_MIN_PIXELS = 0.012  # of the image: 200 at 128x128
_JPEG_QUALITY = 95
_SHIFT = 4  # fractional bits of the coordinates given to OpenCV


# Outlines: contours around the origin, filled by the even-odd rule.


def _arc(start, stop, radius=1.0, center=0.0, points=48):
    """Returns points of a circle between two angles, in radians."""
    angle = np.linspace(start, stop, points, endpoint=False)
    return np.stack([center + radius * np.cos(angle), radius * np.sin(angle)], 1)


def _star(tips, inner):
    """Returns a star whose notches lie at `inner` of the radius of its tips."""
    corners = _arc(0, 2 * np.pi, points=2 * tips)
    corners[1::2] *= inner
    return corners


def _cross(arm):
    """Returns a Greek cross of half arm width `arm`."""
    quarter = np.array([(1, -arm), (1, arm), (arm, arm)])
    turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([quarter @ turn for turn in turns])


def _crescent(radius=0.8, center=0.5):
    """Returns a disc less a smaller one, whose circles meet in the two horns."""
    x = (1 + center**2 - radius**2) / (2 * center)
    outer, inner = np.arccos(x), np.arccos((x - center) / radius)
    back = _arc(2 * np.pi - inner, inner, radius, center)
    return np.concatenate([_arc(outer, 2 * np.pi - outer), back])


def _unit_area(*contours):
    """Returns contours scaled to enclose an area of one; later ones are holes."""
    areas = [cv2.contourArea(c.astype(np.float32)) for c in contours]
    return [c / np.sqrt(areas[0] - sum(areas[1:])) for c in contours]


_CIRCLE = _arc(0, 2 * np.pi)
_OUTLINES = {
    "disc": _unit_area(_CIRCLE),
    "ring": _unit_area(_CIRCLE, 0.55 * _CIRCLE),
    "triangle": _unit_area(_arc(0, 2 * np.pi, points=3)),
    "square": _unit_area(_arc(0, 2 * np.pi, points=4)),
    "star": _unit_area(_star(5, 0.45)),
    "cross": _unit_area(_cross(0.3)),
    "crescent": _unit_area(_crescent()),
}
CLASS_NAMES = ("background", *_OUTLINES)


# Layout: what lies where.


class _Object(NamedTuple):
    """One placed object: its class and frame, and what it covers (0..255)."""

    class_id: int
    center: np.ndarray
    angle: float
    size: float
    mask: np.ndarray


def _place(rng, image_size):
    """Returns an object at random: class, place, size, rotation, slight squeeze."""
    class_id = int(rng.integers(1, len(CLASS_NAMES)))
    size = min(image_size) * rng.uniform(*_SIZES)
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.1)
    center = rng.uniform(0.1, 0.9, 2) * image_size[::-1]
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    frame = size * turn * (squeeze, 1 / squeeze)
    contours = [c @ frame + center for c in _OUTLINES[CLASS_NAMES[class_id]]]
    contours = [np.round(c * 2**_SHIFT).astype(np.int32) for c in contours]
    mask = np.zeros(image_size, np.uint8)
    cv2.fillPoly(mask, contours, 255, cv2.LINE_AA, _SHIFT)
    return _Object(class_id, center, angle, size, mask)


def _layout(rng, image_size):
    """Returns objects, back to front, and the map of the topmost one per pixel.

    An object that would be hidden too much or hide another too much is drawn
    again. The map counts from 1; 0 is the ground.
    """
    objects, areas = [], []
    top = np.zeros(image_size, np.uint8)
    count = rng.integers(*_OBJECTS, endpoint=True)
    for _ in range(20 * count):
        candidate = _place(rng, image_size)
        trial = np.where(candidate.mask > 127, np.uint8(len(objects) + 1), top)
        visible = np.bincount(trial.ravel(), minlength=len(objects) + 2)[1:]
        wanted = np.multiply(_MIN_VISIBLE, [*areas, candidate.size**2])
        if np.all(visible >= np.maximum(wanted, _MIN_PIXELS * top.size)):
            objects.append(candidate)
            areas.append(candidate.size**2)
            top = trial
        if len(objects) == count:
            break
    return objects, top


def _label(objects, top):
    """Returns class ids, void within `_VOID_RADIUS` of where two objects meet."""
    label = np.array([0, *(o.class_id for o in objects)], np.uint8)[top]
    side = 2 * _VOID_RADIUS + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    label[cv2.dilate(top, kernel) != cv2.erode(top, kernel)] = IGNORE_LABEL
    return label


# Appearance: what it looks like. Images are float32 RGB in 0..1.


def _noise(rng, image_size, cells):
    """Returns smooth noise in 0..1 with about `cells` bumps per side."""
    grid = rng.random((cells + 1, cells + 1), np.float32)
    noise = cv2.resize(grid, image_size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(noise, 0, 1)


def _waves(x):
    """Returns a wave of period 1 between 0 and 1, steeper than a sine."""
    return np.clip(0.5 + np.sin(np.float32(2 * np.pi) * x), 0, 1)


def _target(rng, x, y):
    return _waves(0.8*np.hypot(x, y))


def _spokes(rng, x, y):
    return _waves(np.arctan2(y, x) * np.float32(rng.integers(9, 14) / (2 * np.pi)))


def _stripes(rng, x, y):
    return _waves(1.5 * x)


def _checks(rng, x, y):
    wave = np.sin(np.float32(np.pi) * x) * np.sin(np.float32(np.pi) * y)
    return np.clip(0.5 + 3 * wave, 0, 1)


def _satin(rng, x, y):
    return np.clip(x * 0.05 + 0.5, 0, 1)


def _dots(rng, x, y):
    wave = np.cos(np.float32(2*np.pi) * x) + np.cos(np.float32(2*np.pi) * y)
    return np.clip(0.5 + 2 * (wave - 0.7), 0, 1)


def _speckle(rng, x, y):
    noise = _noise(rng, x.shape, int(rng.integers(24, 36)))
    return np.clip(6 * (noise - 0.55), 0, 1)


_PATTERNS = (_target, _spokes, _stripes, _checks, _satin, _dots, _speckle)
import os
P=float(os.environ.get('P','1')); HUE=float(os.environ.get('HUE','0'))


def _ramp(rng, image_size):
    """Returns a linear ramp over the image, -0.5..0.5, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    height, width = image_size
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(np.sin(angle))
    return (x[None] + y[:, None]) / np.float32(abs(np.cos(angle)) + abs(np.sin(angle)))


def _color(rng, c=0):
    """Returns a random colour, neither black nor white."""
    hue = rng.uniform(0,360)
    if c and HUE:
       hue = (rng.normal(0, HUE) + (c-1)*360/7) % 360
    hsv = (hue, rng.uniform(0.35, 0.9) if c else rng.uniform(0.05,0.5), rng.uniform(0.35, 0.95))
    return cv2.cvtColor(np.float32([[hsv]]), cv2.COLOR_HSV2RGB)[0, 0]


def _frame(image_size, center, angle, period):
    """Returns the coordinates of every pixel in a frame, in units of `period`."""
    x = np.arange(image_size[1], dtype=np.float32)[None] - np.float32(center[0])
    y = np.arange(image_size[0], dtype=np.float32)[:, None] - np.float32(center[1])
    cos, sin = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    return cos * x + sin * y, cos * y - sin * x


def _material(rng, pattern, color, x, y, contrast):
    """Returns a surface: a pattern between a colour and a relative of it."""
    dark = rng.uniform(*contrast)
    second = np.clip(color * dark + rng.normal(0, 0.06, 3), 0, 1)
    pattern = pattern(rng, x, y)[..., None]
    surface = color + pattern * (second - color).astype(np.float32)
    grain = _noise(rng, x.shape, int(rng.integers(20, 60)))[..., None]
    return surface * (0.92 + np.float32(0.16) * grain)


def _ground(rng, image_size):
    side = min(image_size)
    center = rng.uniform(-0.3, 1.3, 2) * image_size[::-1]
    x, y = _frame(image_size, center, rng.uniform(0, 2 * np.pi), side * rng.uniform(0.1, 0.25))
    warp = np.float32(rng.uniform(0, 1.5))
    x = x + warp * _noise(rng, image_size, 4)
    y = y + warp * _noise(rng, image_size, 4)
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    image = _material(rng, pattern, _color(rng), x, y, (0.65, 0.95))
    return cv2.GaussianBlur(image, (0, 0), side*rng.uniform(0.004, 0.012))


def _relief(rng, mask, light):
    """Returns the brightness of an object with a rounded rim under `light`."""
    rim = np.float32(rng.uniform(0.25, 0.8) * 0.1 * min(mask.shape) + 1.5)
    depth = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 3)
    slope = 1 - np.minimum(depth / rim, 1)
    height = cv2.GaussianBlur(np.sqrt(1 - slope * slope), (0, 0), 1.0) * rim
    facing = light[0] * cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    facing += light[1] * cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    return np.clip(1 - 0.45 * facing, 0.5, 1.5)


def _paint(rng, image, item, light):
    """Returns the image with one object and its soft shadow on top."""
    mask = item.mask
    side = min(mask.shape)
    under = np.float32(cv2.mean(image, mask)[:3])
    colors = [_color(rng, item.class_id) for _ in range(3)]
    color = max(colors, key=lambda c: float(np.sum((c - under) ** 2)))
    x, y = _frame(mask.shape, item.center, item.angle, side*rng.uniform(0.045, 0.07))
    pattern = _PATTERNS[item.class_id - 1] if rng.random() < P else _PATTERNS[rng.integers(len(_PATTERNS))]
    surface = _material(rng, pattern, color, x, y, (0.4, 0.7))
    surface *= _relief(rng, mask, light)[..., None]
    alpha = mask.astype(np.float32)[..., None] / 255
    throw = np.float32(rng.uniform(0.015, 0.04) * side)
    move = np.float32([(1, 0, throw * light[0]), (0, 1, throw * light[1])])
    shadow = cv2.warpAffine(alpha, move, mask.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), float(throw))[..., None]
    image = image * (1 - np.float32(rng.uniform(0.3, 0.6)) * shadow)
    return image + alpha * (surface - image)


def _photograph(rng, image):
    """Returns uint8 pixels: uneven lighting, a slightly soft lens, sensor noise."""
    lighting = 1 + np.float32(rng.uniform(0, 0.6)) * _ramp(rng, image.shape[:2])
    image = cv2.GaussianBlur(image * lighting[..., None], (0, 0), rng.uniform(0.3, 0.6))
    noise = rng.standard_normal(image.shape, np.float32)
    image += np.float32(rng.uniform(0.005, 0.025)) * noise
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)


def scene(rng, image_size):
    """Returns one scene and its labels.

    Args:
        rng: A `numpy.random.Generator`, the only source of chance.
        image_size: (height, width) in pixels.

    Returns:
        RGB image `[height, width, 3]` and class ids `[height, width]`, with 255
        along every contour; both uint8.
    """
    image_size = tuple(image_size)
    objects, top = _layout(rng, image_size)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.float32([np.cos(angle), np.sin(angle)])
    image = _ground(rng, image_size)
    for item in objects:
        image = _paint(rng, image, item, light)
    return _photograph(rng, image), _label(objects, top)
