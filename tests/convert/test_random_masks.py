"""Random masks, class files and flags: read as the truth, or refused in one line."""

import random

import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageFilter
from scipy import ndimage

from deeplab_tf.convert.class_list import MaskOptions, read_class_list
from deeplab_tf.convert.color_labels import Masks
from deeplab_tf.errors import UserError

HEIGHT, WIDTH = 24, 32
NAMES = ("background", "cat", "dog", "road")
VOID = 255  # in the truth
# Pixels that --nearest may change, next to the edge of an object.
EDGE = 2


class Case:
    """A random data set of three masks.

    Attributes:
        count: Number of classes.
        values: The mask value of each class and, as the last, of void.
        colors: The same for colours.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.count = self.random.randint(2, 4)
        self.is_nearest = self.random.random() < 0.4
        # Areas of an undeclared value may be narrower than edges.
        self.has_void = not self.is_nearest and self.random.random() < 0.4
        self.values, self.colors = self.choose_values(), self.choose_colors()
        self.truths = [self.draw() for _ in range(3)]

    def choose_values(self):
        kind = self.random.choice(("ids", "ids", "paint", "other", "deep"))
        void = self.random.choice((255, 254, 77)) if kind == "ids" else 254
        if kind == "ids":
            return [*range(self.count), void]
        if kind == "paint":
            return [255 * i // (self.count - 1) for i in range(self.count)] + [33]
        top = 65535 if kind == "deep" else 240
        others = self.random.sample(range(40, top), self.count - 1)
        return [self.random.choice((0, 9)), *others, void]

    def choose_colors(self):
        if self.random.random() < 0.4:
            greys = self.random.sample((0, 80, 160, 255, 1, 2), self.count)
            return [(g,) * 3 for g in greys] + [(40, 40, 40)]
        samples = self.random.sample(range(8), self.count + 1)
        return [tuple(255 * (s >> b & 1) for b in range(3)) for s in samples]

    def draw(self):
        label = np.zeros((HEIGHT, WIDTH), int)
        classes = [*range(1, self.count), *([self.count] if self.has_void else [])]
        for i in self.random.sample(classes, self.random.randint(0, len(classes))):
            y, x = self.numbers.integers(0, 12), self.numbers.integers(0, 20)
            label[y : y + 11, x : x + 11] = i
        return label

    def write(self, folder):
        """Writes the masks; returns their paths and coding."""
        coding = self.random.choice(("values", "values", "colours", "palette", "rgb"))
        change = self.random.choice(("", "", "", "blur", "jpeg", "resize"))
        paths = []
        for i, truth in enumerate(self.truths):
            image, formats = self.encode(truth, coding)
            is_id = coding in ("values", "rgb") and self.values[1] == 1
            # In-between values of class ids are other class ids.
            is_changed = change and image.mode in ("L", "RGB") and not is_id
            if is_changed:
                image = degrade(image, change)
            is_jpeg = is_changed and change == "jpeg"
            suffix = ".jpg" if is_jpeg else self.random.choice(formats)
            paths.append(epath.Path(folder / f"{i}{suffix}"))
            image.save(paths[-1], lossless=True, quality=95)
        return paths, coding

    def encode(self, truth, coding):
        if coding == "colours":
            pixels = np.array(self.colors, np.uint8)[truth]
            return Image.fromarray(pixels), (".png", ".tif", ".bmp", ".webp")
        if coding == "palette":
            order = self.random.sample(range(self.count + 1), self.count + 1)
            if self.random.random() < 0.5:
                order = list(range(self.count + 1))
            image = Image.fromarray(np.argsort(order)[truth].astype(np.uint8), "P")
            palette = [self.colors[i] for i in order]
            image.putpalette(np.array(palette, np.uint8).tobytes())
            return image, (".png", ".tif", ".bmp", ".gif")
        values = np.array(self.values)[truth]
        if values.max() > 255:
            return Image.fromarray(values.astype(np.uint16)), (".png", ".tif")
        image = Image.fromarray(values.astype(np.uint8))
        formats = (".png", ".tif", ".bmp", ".gif", ".webp")
        if coding == "rgb":
            return image.convert("RGB"), formats[:3]
        if values.max() == 1 and self.random.random() < 0.5:
            return Image.fromarray(values == 1), (".png", ".tif")
        return image, formats

    def write_classes(self, folder, coding):
        """Writes a class file that is right, though it may not say everything."""
        kind = self.random.choice(("names", "values", "colours", "both"))
        is_id = self.values[: self.count] == [*range(self.count)]
        if coding in ("colours", "palette"):
            kind = self.random.choice(("colours", "both")) if is_id else "colours"
        elif kind == "colours" and not is_id:
            kind = "both"  # the colours alone would not be those of the masks
        lines = []
        for i, name in enumerate(NAMES[: self.count]):
            r, g, b = self.colors[i]
            value = self.values[i]
            lines.append(
                {
                    "names": name,
                    "values": f"{value},{name}",
                    "colours": f"{name},{r},{g},{b}",
                    "both": f"{value},{name},{r},{g},{b}",
                }[kind]
            )
        path = epath.Path(folder / "classes.txt")
        path.write_text("\n".join(lines))
        return path

    def choose_options(self, coding):
        entries = [
            f"{value}:{(*NAMES[: self.count], 'ignore')[i]}"
            for i, value in enumerate(self.values[: self.count + self.has_void])
        ]
        kept = self.random.choice((0, 0, 1, len(entries)))
        if coding in ("colours", "palette"):
            kept = 0  # the masks do not have these values
        void = self.colors[-1]
        has_colors = self.has_void and self.random.random() < 0.5
        return MaskOptions(
            (void,) if has_colors else (),
            self.random.sample(entries, kept),
            self.is_nearest,
        )


def degrade(image, change):
    if change == "blur":
        return image.filter(ImageFilter.GaussianBlur(0.7))
    if change == "resize":
        half = image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BOX)
        return half.resize(image.size, Image.Resampling.BILINEAR)
    return image


def near_edges(label):
    """Returns the pixels within `EDGE` of another class."""
    size = 2 * EDGE + 1
    return ndimage.minimum_filter(label, size) != ndimage.maximum_filter(label, size)


def read_case(seed, folder):
    """Returns whether a case was read; fails if it is not read as the truth."""
    case = Case(seed)
    paths, coding = case.write(folder)
    options = case.choose_options(coding)
    try:
        classes = read_class_list(case.write_classes(folder, coding), "random", options)
        masks = Masks(classes, paths)
        labels = [masks.read(path) for path in paths]
    except UserError as error:
        assert "\n" not in str(error)
        return False
    # Values in the class file order the classes.
    ids = [classes.info.class_names.index(name) for name in NAMES[: case.count]]
    for label, truth in zip(labels, case.truths, strict=True):
        truth = np.array([*ids, VOID])[truth]
        wrong = label != truth
        if options.nearest:
            wrong &= ~near_edges(truth)
        assert not wrong.any(), f"seed {seed}: {coding}, {options}"
    return True


@pytest.mark.parametrize("block", range(4))
def test_random_masks_are_read_as_the_truth_or_refused(tmp_path, block):
    read = 0
    for seed in range(block * 500, block * 500 + 500):
        folder = tmp_path / str(seed)
        folder.mkdir()
        read += read_case(seed, folder)
    assert read > 100
