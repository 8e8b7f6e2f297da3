"""Random masks of any coding, and the options that say what they mean."""

import random

import numpy as np
from PIL import Image, ImageFilter
from random_class_tables import WORDS
from scipy import ndimage
from small_masks import encode, encode_npy

from deeplab_tf.convert.class_list import MaskOptions

VOID = 255
# Pixels that --nearest may change, next to the edge of an object.
EDGE = 2
FORMATS = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".jpg": "JPEG",
}


class RandomMasks:
    """The classes of a random dataset and the coding of its masks.

    Attributes:
        names: Names of the classes, in the order of their values where these are ids.
        count: Number of classes.
        values: The mask value of each class and, as the last two, of void.
        colors: The same for colours.
        has_void: Whether any pixel is void.
        coding: "values", "rgb" (values in three channels), "colours" or "palette".
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.count = self.random.randint(2, 4)
        first = self.random.choice(("background", "background", "_background_", "sky"))
        others = [word for word in WORDS if word[0].isalpha()]
        self.names = [first, *self.random.sample(others, self.count - 1)]
        self.is_nearest = self.random.random() < 0.35
        # Areas of an undeclared value may be narrower than edges.
        self.has_void = not self.is_nearest and self.random.random() < 0.4
        self.values, self.colors = self.choose_values(), self.choose_colors()
        codings = ("values", "values", "values", "colours", "palette", "rgb")
        self.coding = self.random.choice(codings)
        self.change = self.random.choice(("", "", "", "blur", "jpeg", "resize"))
        self.order = list(range(len(self.colors)))
        if self.random.random() < 0.5:
            self.random.shuffle(self.order)

    def choose_values(self):
        kind = self.random.choice(("ids", "ids", "ids", "paint", "other", "deep"))
        void = self.random.choice((255, 255, 254, 77)) if kind == "ids" else 254
        if kind == "ids":
            return [*range(self.count), void, self.random.choice((void, 253))]
        if kind == "paint":
            return [255 * i // (self.count - 1) for i in range(self.count)] + [33, 34]
        top = 65535 if kind == "deep" else 240
        others = self.random.sample(range(40, top), self.count - 1)
        return [self.random.choice((0, 9)), *others, void, 253]

    def choose_colors(self):
        if self.random.random() < 0.3:
            greys = self.random.sample((0, 80, 160, 255, 1, 2), self.count)
            return [(g,) * 3 for g in greys] + [(40,) * 3, (60,) * 3]
        samples = self.random.sample(range(8), self.count + 2)
        return [tuple(255 * (s >> b & 1) for b in range(3)) for s in samples]

    @property
    def has_ids(self):
        """Whether mask values are 0, 1, 2, ..."""
        return self.values[: self.count] == [*range(self.count)]

    @property
    def has_greys(self):
        """Whether all colours are grey."""
        return all(len(set(color)) == 1 for color in self.colors)

    def draw(self, height=24, width=32):
        """Returns indices of `values` and `colors`, `[height, width]`."""
        label = np.zeros((height, width), int)
        voids = [self.count, self.count + 1] if self.has_void else []
        classes = [*range(1, self.count), *voids]
        most = len(classes)
        for i in self.random.sample(classes, self.random.choice((0, 1, most, most))):
            y, x = self.numbers.integers(0, height - 12), self.numbers.integers(0, 20)
            label[y : y + 11, x : x + 11] = i
        return label

    def to_labels(self, truth, names, void=VOID):
        """Returns class ids from the result of `draw`; `names` are in their order."""
        ids = [names.index(name) for name in self.names]
        return np.array([*ids, void, void])[truth]

    def encode(self, truth, suffix=""):
        """Returns a mask file and its suffix, which is random unless given."""
        pixels, suffixes = self.paint(truth)
        if isinstance(pixels, np.ndarray):
            return encode_npy(pixels), ".npy"
        # In-between values of class ids, or of the greys 0, 1, 2, are other classes.
        is_id = self.coding in ("values", "rgb") and self.values[1] == 1
        is_id |= self.coding == "colours" and self.has_greys
        can_change = not is_id or self.is_nearest or self.change == "jpeg"
        is_changed = self.change and pixels.mode in ("L", "RGB") and can_change
        if is_changed:
            pixels = degrade(pixels, self.change)
        is_jpeg = is_changed and self.change == "jpeg"
        suffix = ".jpg" if is_jpeg else suffix or self.random.choice(suffixes)
        content = encode(pixels, FORMATS[suffix], lossless=True, quality=95)
        return content, self.random.choice((suffix, suffix, suffix.upper()))

    def paint(self, truth):
        """Returns an image and the suffixes of formats for it, or an array."""
        if self.coding == "colours":
            image = Image.fromarray(np.array(self.colors, np.uint8)[truth])
            if self.random.random() < 0.2:
                image.putalpha(Image.fromarray(np.where(truth, 255, 0).astype("u1")))
                return image, (".png", ".tif")
            return image, (".png", ".tif", ".bmp", ".webp")
        if self.coding == "palette":
            indices = np.argsort(self.order)[truth].astype(np.uint8)
            image = Image.fromarray(indices, "P")
            palette = [self.colors[i] for i in self.order]
            image.putpalette(np.array(palette, np.uint8).tobytes())
            return image, (".png", ".tif", ".bmp", ".gif")
        values = np.array(self.values)[truth]
        if self.coding == "values" and self.random.random() < 0.1:
            dtype = np.uint16 if values.max() > 255 else np.uint8
            return values.astype(self.random.choice((dtype, np.int64))), ()
        if values.max() > 255:
            return Image.fromarray(values.astype(np.uint16)), (".png", ".tif")
        image = Image.fromarray(values.astype(np.uint8))
        suffixes = (".png", ".png", ".tif", ".bmp", ".gif", ".webp")
        if self.coding == "rgb":
            return image.convert("RGB"), suffixes[:4]
        if values.max() == 1 and self.random.random() < 0.5:
            return Image.fromarray(values == 1), (".png", ".tif")
        return image, suffixes

    def table(self):
        """Returns name, mask value and colour of each class."""
        return list(zip(self.names, self.values, self.colors, strict=False))

    def is_decidable(self, has_ids, has_colors):
        """Returns whether a class file with these columns can say enough.

        With others, masks might mean something else than the truth.
        """
        if self.coding == "palette":
            return has_colors and (self.has_ids or not has_ids)
        if self.coding == "colours":
            return (has_colors or not self.has_greys) and (self.has_ids or not has_ids)
        # The colours alone would not be those of the masks.
        return has_ids or self.has_ids or not has_colors

    def choose_options(self):
        """Returns options that are right, but may not say everything."""
        targets = (*self.names, "ignore", "ignore")
        entries = [
            f"{value}:{target}"
            for value, target in dict(zip(self.values, targets, strict=True)).items()
        ][: None if self.has_void else self.count]
        kept = self.random.choice((0, 0, 1, len(entries), len(entries)))
        if self.coding in ("colours", "palette"):
            kept = 0  # the masks do not have these values
        has_colors = self.has_void and self.random.random() < 0.5
        return MaskOptions(
            tuple(self.colors[self.count :]) if has_colors else (),
            self.random.sample(entries, kept),
            self.is_nearest,
        )


def degrade(image, change):
    if change == "blur":
        return image.filter(ImageFilter.GaussianBlur(0.7))
    if change == "resize":
        half = image.resize([s // 2 for s in image.size], Image.Resampling.BOX)
        return half.resize(image.size, Image.Resampling.BILINEAR)
    return image


def near_edges(label):
    """Returns the pixels within `EDGE` of another class."""
    size = 2 * EDGE + 1
    return ndimage.minimum_filter(label, size) != ndimage.maximum_filter(label, size)
