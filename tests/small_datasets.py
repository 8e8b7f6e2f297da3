"""Writes datasets of a few small images in their official layouts."""

import json
import zlib

import numpy as np
from PIL import Image

# Some of COCO's 80 categories in order, including the 20 of VOC.
COCO_CATEGORIES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, "
    "traffic light, bird, cat, dog, horse, sheep, cow, elephant, bottle, chair, "
    "couch, potted plant, dining table, tv"
).split(", ")


def save_image(path, height=20, width=30, seed=None):
    """Writes an image of noise, JPEG or PNG by the suffix.

    Args:
        path: Path of the file.
        height: Height in pixels.
        width: Width in pixels.
        seed: Seed of the noise; None derives it from the name.
    """
    seed = zlib.crc32(path.name.encode()) if seed is None else seed
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)


def save_label(path, label):
    """Writes class ids as a PNG of one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(label, np.uint8)).save(path)


def write_cityscapes(root, coarse=True):
    """Writes Cityscapes with one or two images per folder; returns its root.

    The label of image i of a folder has the ids i, i + 1, ... up to 33, then from 0
    again; labels of the test split are 0, as in the archive.
    """
    folders = {"train": ("aachen", "ulm"), "val": ("munster",), "test": ("berlin",)}
    if coarse:
        folders["train_extra"] = ("augsburg", "nuernberg")
    for folder, cities in folders.items():
        for i, city in enumerate(cities):
            stem = f"{city}_00000{i}_000019"
            save_image(root / f"leftImg8bit/{folder}/{city}/{stem}_leftImg8bit.png")
            ids = (np.arange(20 * 30).reshape(20, 30) + i) % 34
            kinds = ["gtFine"] if folder != "train_extra" else []
            kinds += ["gtCoarse"] if coarse and folder != "test" else []
            for kind in kinds:
                label = ids if folder != "test" else 0 * ids
                label = label if kind == "gtFine" else np.minimum(label, 7)
                path = root / f"{kind}/{folder}/{city}/{stem}_{kind}"
                save_label(path.with_name(f"{path.name}_labelIds.png"), label)
                # The archives also have instance labels, which are not used.
                save_label(path.with_name(f"{path.name}_instanceIds.png"), label)
    return root


def write_ade20k(root):
    """Writes ADE20K with two training images and one for validation.

    The label of image i has the values i, i + 1, ... up to 150, then from 0 again.
    """
    for folder, short, count in (("training", "train", 2), ("validation", "val", 1)):
        for i in range(count):
            stem = f"ADE_{short}_{i + 1:08d}"
            save_image(root / f"images/{folder}/{stem}.jpg")
            label = (np.arange(20 * 30).reshape(20, 30) + i) % 151
            save_label(root / f"annotations/{folder}/{stem}.png", label)
    return root


def rectangle(top, left, height, width):
    """Returns a polygon that COCO's rasterizer fills as exactly this rectangle."""
    bottom, right = top + height, left + width
    return [left, top, right, top, right, bottom, left, bottom]


class CocoBuilder:
    """Builds an instances file and its images."""

    def __init__(self, root):
        self.path = root / "annotations/instances_train2017.json"
        self.image_dir = root / "train2017"
        self.image_dir.mkdir(parents=True)
        self.path.parent.mkdir()
        # Ids with gaps, as in COCO.
        self.category_ids = {n: 2 * i + 1 for i, n in enumerate(COCO_CATEGORIES)}
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": i, "name": name} for name, i in self.category_ids.items()
            ],
        }

    def add_image(self, name, height=40, width=60):
        """Writes an image and adds it to the file; returns its id."""
        save_image(self.image_dir / name, height, width)
        image_id = 7000 + len(self.content["images"])
        self.content["images"].append(
            {"id": image_id, "file_name": name, "height": height, "width": width}
        )
        return image_id

    def add_object(self, image_id, category, segmentation, iscrowd=0):
        """Adds an object to the file."""
        self.content["annotations"].append(
            {
                "id": 100 + len(self.content["annotations"]),
                "image_id": image_id,
                "category_id": self.category_ids[category],
                "segmentation": segmentation,
                "iscrowd": iscrowd,
            }
        )

    def save(self):
        """Writes the instances file."""
        self.path.write_text(json.dumps(self.content))


def write_coco(root):
    """Writes COCO with two images, one with a large object; returns its root."""
    files = CocoBuilder(root)
    for name, side in (("000000000009.jpg", 36), ("000000000025.jpg", 3)):
        image_id = files.add_image(name)
        files.add_object(image_id, "couch", [rectangle(0, 0, side, side)])
    files.save()
    return root
