"""Random folders of images with masks or annotations, and flags to convert them."""

import json
import random
import unicodedata
from typing import NamedTuple

import annotation_files
import numpy as np
import tensorflow as tf
from PIL import Image
from random_class_tables import write_any
from random_masks import RandomMasks, near_edges
from small_masks import encode, encode_npy

FOLDERS = ("", "", "berlin/", "paris/old town/", "e\u0301te\u0301/")
STEMS = ("IMG_1", "img 2", "a.b.c", "caf\u00e9", "(3)", "10", "x_mask", "\u65e5\u672c")
JUNK = ("._IMG_1.png", "Thumbs.db", ".DS_Store", "notes.txt", ".trash/IMG_1.png")
SUFFIXES = ".jpg .JPG .jpeg .png .PNG .webp .bmp .tif .gif .npy".split()
PATTERNS = ("{image}_{class}.png", "{image}/{class}.png", "{class}/{image}.png")
# What may be wrong with an image, or its mask: it is broken, of another size or depth,
# or missing; or the mask is alone.
STATES = ("image", "mask", "size", "depth", "missing", "alone")
# How an image with an EXIF orientation is turned upright.
UPRIGHT = {
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    8: Image.Transpose.ROTATE_90,
}
SIZES = ((24, 32), (32, 24), (32, 32), (33, 47))
# Writers, and whether smaller objects are on top.
ANNOTATIONS = {
    annotation_files.save_labelme: False,
    annotation_files.save_coco: True,
    annotation_files.save_yolo: True,
    annotation_files.save_label_studio: False,
    annotation_files.save_cvat: False,
    annotation_files.save_via: False,
}
ANNOTATED = ("background", "cat", "dog")
# Flags that are wrong for every folder.
WRONG_FLAGS = (
    ["--image_suffix=_absent"],
    ["--label_suffix=_absent"],
    ["--label_prefix=absent_"],
    ["--mask_pattern={image}.png"],
    ["--mask_pattern={image}_{class}_absent.png"],
    ["--value_map=1:no such class"],
    ["--value_map=a:0"],
    ["--value_map=70000:0"],
    ["--value_map=3:0,3:1"],
    ["--ignore_color=1,2"],
    ["--ignore_label=256"],
    ["--missing_mask=guess"],
    ["--max_value=65535"],
    ["--max_value=100000"],
    ["--channels=7"],
    ["--tile=0", "--tile_overlap=4"],
    ["--tile=-1"],
    ["--tile=16", "--tile_overlap=9"],
    ["--val_share=1.5"],
    ["--val_share=0.001"],
    ["--val_share=0", "--group_by=folder"],
    ["--val_share=0.5", "--group_by=^video"],
    ["--val_share=0.5", "--group_by=("],
    ["--val_share=0.5", "--split=val"],
    ["--split=a/b"],
    ["--annotations=.", "--label_dir=."],
    ["--annotations=absent.json"],
    ["--label_dir=absent"],
    ["--classes=absent.txt"],
    ["--num_shards=0"],
    ["--no_such_flag"],
)
# Share of the folders that have a flag, and its values; "" for none.
OPTIONS = (
    (0.4, "skip_broken", ("",)),
    (0.25, "val_share", (0.2, 0.34, 0.5, 0.8)),
    (0.4, "group_by", ("folder", "^.")),
    (0.15, "tile", (16,)),
    (0.5, "tile_overlap", (5,)),
    (0.15, "split", ("train", "test", "trainval")),
    (0.3, "num_shards", (1, 2)),
    (0.5, "missing_mask", ("error", "background", "skip")),
)
PATHS = ("image_dir", "label_dir", "output_dir", "annotations", "classes")


class Scene(NamedTuple):
    """What the record of an image must have.

    Attributes:
        pixels: The image.
        label: Indices of the classes; the number of classes and more are void.
        uncertain: Pixels of the label that --nearest may change.
    """

    pixels: np.ndarray
    label: np.ndarray
    uncertain: np.ndarray


class RandomFolder:
    """A folder and the flags that convert it, or do not.

    Attributes:
        scenes: What the records must have, by name.
        broken: Names of images that cannot be converted.
        flags: The flags, by name; "" is given without a value.
        is_wrong: Whether nothing may be converted.
        names: Class names in order; None for those of the annotations.
        colors: Their colours, if any.
    """

    def __init__(self, seed, root):
        self.random = random.Random(seed)
        self.masks = RandomMasks(seed)
        self.root = root
        self.scenes, self.broken, self.is_wrong = {}, set(), False
        self.names = self.colors = None
        self.void = 255
        self.flags = {"image_dir": "images", "output_dir": "out"}
        layouts = ("two folders",) * 6 + ("suffix", "formats", "pattern", "pattern")
        self.layout = self.random.choice((*layouts, *("annotations",) * 3))
        self.choose_options()
        if self.layout == "annotations":
            self.prepare_annotations()
        else:
            self.prepare_masks()

    def is_chosen(self, share):
        return self.random.random() < share

    def write(self, path, content):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def choose_options(self):
        """Chooses flags that are the same for all layouts."""
        self.exif = self.random.choice(("none",) * 6 + ("upright", "stored"))
        if self.exif != "none" and self.is_chosen(0.7):
            self.flags["apply_exif" if self.exif == "upright" else "noapply_exif"] = ""
        for share, name, values in OPTIONS:
            if self.is_chosen(share):
                self.flags[name] = self.random.choice(values)
        for name, other in (("group_by", "val_share"), ("tile_overlap", "tile")):
            if other not in self.flags:
                self.flags.pop(name, None)

    def choose_stems(self):
        """Returns new names of images; none differ only in case or Unicode form."""
        known = {fold(name) for name in self.scenes}
        names = {}
        for _ in range(self.random.choice((1, 3, 4, 6, 9))):
            name = self.random.choice(FOLDERS) + self.random.choice(STEMS)
            form = self.random.choice(("NFC", "NFC", "NFD"))
            names[fold(name)] = unicodedata.normalize(form, name)
        return [name for key, name in names.items() if key not in known]

    def command(self):
        """Returns the flags as arguments, perhaps with wrong ones."""
        flags = []
        for name, value in self.flags.items():
            value = self.root / value if name in PATHS else value
            flags.append(f"--{name}" if value == "" else f"--{name}={value}")
        return flags + self.wrong_flags

    def add_images(self):
        """Writes images and what belongs to them."""
        stems = self.choose_stems()
        if self.layout == "annotations":
            self.write_annotations(stems)
        else:
            for stem in stems:
                self.write_scene(stem)
        for folder in {"images", self.flags.get("label_dir", "images")}:
            for name in self.random.sample(JUNK, self.random.randint(0, 3)):
                self.write(f"{folder}/{name}", b"junk")

    def choose_wrong_flags(self):
        self.wrong_flags = []
        if self.is_chosen(0.1):
            self.wrong_flags = self.random.choice(WRONG_FLAGS)
            self.is_wrong = True

    def prepare_masks(self):
        is_shared = self.layout in ("suffix", "formats")
        self.flags["label_dir"] = "images" if is_shared else "masks"
        self.affixes = ["", "", "", ""]
        if self.layout == "suffix":
            self.affixes[self.random.choice((2, 3))] = self.random.choice((" gt", "_m"))
        elif self.layout == "two folders" and self.is_chosen(0.3):
            self.affixes[self.random.randrange(4)] = self.random.choice(("_x", "m-"))
        flags = ("image_prefix", "image_suffix", "label_prefix", "label_suffix")
        if self.is_chosen(0.9):
            given = zip(flags, self.affixes, strict=True)
            self.flags |= {flag: affix for flag, affix in given if affix}
        elif any(self.affixes):
            self.is_wrong = True
        self.change_name = self.random.choice((str,) * 6 + (str.swapcase, to_nfd))
        if self.layout == "pattern":
            self.flags["mask_pattern"] = self.random.choice(PATTERNS)
            self.masks.has_void = self.masks.is_nearest = False
            self.masks.values = [0, 1, 2, 3, 255, 255]
        self.write_class_file()
        self.choose_wrong_flags()

    def write_class_file(self):
        """Writes the classes of the masks in any form that is right."""
        table = self.masks.table()
        while True:
            text, has_ids, has_colors = write_any(self.random, table)
            if self.layout == "pattern" or self.masks.is_decidable(has_ids, has_colors):
                break
        rows = sorted(table, key=lambda row: row[1]) if has_ids else table
        self.names = [name for name, _, _ in rows]
        self.colors = [color for _, _, color in rows] if has_colors else None
        text = text.replace("\n", self.random.choice(("\n", "\r\n")))
        encoding = self.random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
        self.write("classes.txt", text.encode(encoding))
        self.flags["classes"] = "classes.txt"
        if self.layout == "pattern":
            return
        ignored, entries, is_nearest = self.masks.choose_options()
        if entries:
            self.flags["value_map"] = ",".join(entries)
        if ignored:
            colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in ignored]
            self.flags["ignore_color"] = ",".join(colors)
        if is_nearest:
            self.flags["nearest"] = ""
        if self.masks.has_void and self.is_chosen(0.3):
            self.void = self.flags["ignore_label"] = self.masks.values[self.masks.count]

    def write_scene(self, stem):
        """Writes an image and its mask, or something wrong with them."""
        state = self.random.choice(STATES) if self.is_chosen(0.05) else "good"
        suffix, content, pixels = self.encode_photo(*self.random.choice(SIZES))
        shape = pixels.shape[:2]
        if self.layout == "pattern":
            label, files = self.encode_class_masks(stem, shape, state == "size")
        else:
            label = self.masks.draw(*shape)
            files = self.encode_mask(stem, label[:-1] if state == "size" else label)
        if state == "image":
            content = self.cut(content)
        elif state == "mask":
            name = self.random.choice(list(files))
            files[name] = self.cut(files[name])
        elif state == "depth":
            content, suffix = encode(np.zeros(shape, np.uint16)), ".png"
        elif state == "missing":
            label, files = np.zeros(shape, int), {}
        if state != "alone":
            path = self.add_affixes(stem, *self.affixes[:2]) + suffix
            self.write(f"images/{path}", content)
        for name, content in files.items():
            self.write(f"{self.flags['label_dir']}/{name}", content)
        self.note_scene(stem, state, Scene(pixels, label, near_edges(label)))

    def note_scene(self, stem, state, scene):
        """Notes what must come of a scene."""
        action = self.flags.get("missing_mask", "error") if state == "missing" else ""
        self.is_wrong |= action == "error" or state == "alone"
        if state in ("image", "mask", "size", "depth"):
            self.broken.add(stem)
        if action != "skip":
            self.scenes[stem] = scene

    def cut(self, content):
        return content[: self.random.choice((0, 10, len(content) // 2))]

    def add_affixes(self, stem, prefix, suffix):
        folder, slash, file = stem.rpartition("/")
        return f"{folder}{slash}{prefix}{file}{suffix}"

    def encode_mask(self, stem, label):
        forced = ".png" if self.layout == "formats" else ""
        content, suffix = self.masks.encode(label, forced)
        name = self.change_name(stem)
        return {self.add_affixes(name, *self.affixes[2:]) + suffix: content}

    def encode_class_masks(self, stem, shape, has_other_size):
        """Returns a label and its masks of one class each, which may overlap."""
        label, files = np.zeros(shape, int), {}
        for i, name in enumerate(self.masks.names):
            is_class = self.masks.draw(*shape) > 0
            if not is_class.any() and i + 1 < self.masks.count:
                continue
            label[is_class] = i
            fields = {"image": stem, "class": name}
            path = self.flags["mask_pattern"].format(**fields)
            pixels = is_class[:-1] if has_other_size and files else is_class
            if self.is_chosen(0.7):
                pixels = pixels.astype(np.uint8) * self.random.choice((1, 255))
            files[path] = encode(pixels)
            if has_other_size and len(files) == 1:  # also if there is no other mask
                files[path] = encode(pixels[:-1])
        return label, files

    def encode_photo(self, height, width):
        """Returns suffix, content and pixels of an image; they fit the label."""
        pixels = self.masks.numbers.integers(0, 256, (height, width, 3), np.uint8)
        suffix = self.random.choice(SUFFIXES)
        if self.layout == "formats":
            suffix = ".jpg"
        if suffix == ".npy":
            return suffix, encode_npy(pixels), pixels
        kind = Image.registered_extensions()[suffix.lower()]
        modes = ["RGB", "RGB", "RGB", "L"]
        modes += ["RGBA"] if kind in ("PNG", "TIFF", "WEBP") else []
        modes += ["P"] if kind in ("PNG", "BMP") else []
        image = Image.fromarray(pixels)
        image = image.convert("P" if kind == "GIF" else self.random.choice(modes))
        pixels = np.asarray(image.convert("RGB"))
        options, orientation = {}, 1
        if self.exif != "none" and kind in ("JPEG", "PNG", "WEBP"):
            orientation = self.random.choice((1, *UPRIGHT))
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = orientation
        content = encode(image, kind, lossless=True, quality=92, **options)
        if kind == "JPEG":
            pixels = tf.io.decode_jpeg(content, 3).numpy()
        if self.exif == "upright" and orientation in UPRIGHT:
            upright = Image.fromarray(pixels).transpose(UPRIGHT[orientation])
            pixels = np.asarray(upright)
        return suffix, content, pixels

    def prepare_annotations(self):
        for flag in ("apply_exif", "noapply_exif"):
            self.flags.pop(flag, None)
        self.save = self.random.choice(list(ANNOTATIONS))
        self.annotated = {}
        self.flags["annotations"] = "notes"
        self.masks.names, self.masks.count = list(ANNOTATED), len(ANNOTATED)
        if self.is_chosen(0.3):
            names = [["dog", "cat"], ["cat", "x", "dog"], ["background", "cat", "dog"]]
            self.names = self.random.choice(names)
            if self.names[0] != "background":
                self.names.insert(self.random.randrange(2), "background")
            self.write("names.json", json.dumps(self.names).encode())
            self.flags["classes"] = "names.json"
        self.choose_wrong_flags()

    def draw_boxes(self):
        """Returns objects of different areas."""
        boxes = {}
        for name in self.random.choices(ANNOTATED[1:], k=self.random.randint(0, 4)):
            x0, x1 = sorted(self.random.sample(range(annotation_files.WIDTH + 1), 2))
            y0, y1 = sorted(self.random.sample(range(annotation_files.HEIGHT + 1), 2))
            if min(x1 - x0, y1 - y0) > 1:
                boxes[(x1 - x0) * (y1 - y0)] = name, x0, y0, x1, y1
        return list(boxes.values())

    def write_annotations(self, stems):
        shape = annotation_files.HEIGHT, annotation_files.WIDTH
        for stem in stems:
            pixels = self.masks.numbers.integers(0, 256, (*shape, 3), np.uint8)
            content = encode(pixels, "JPEG")
            self.write(f"images/{stem}.jpg", content)
            boxes, state = self.draw_boxes(), "good"
            if self.is_chosen(0.03):
                boxes, state = [], "missing"
            else:
                self.annotated[f"{stem}.jpg"] = boxes
            by_area = ANNOTATIONS[self.save]
            label = annotation_files.draw_truth(boxes, {"cat": 1, "dog": 2}, by_area)
            pixels = tf.io.decode_jpeg(content, 3).numpy()
            scene = Scene(pixels, label.astype(int), np.zeros(shape, bool))
            self.note_scene(stem, state, scene)
        self.save(self.root / "notes", self.annotated)
        if self.save is annotation_files.save_yolo:
            (self.root / "notes/classes.txt").replace(self.root / "classes.txt")


def fold(name):
    return unicodedata.normalize("NFC", name).casefold()


def to_nfd(text):
    return unicodedata.normalize("NFD", text)
