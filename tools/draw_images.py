"""Draws the images of the documentation that need no trained model.

    python tools/draw_images.py

It writes docs/images/tested.svg, masks.png and crops.png. `./demo.sh`,
`benchmarks.qualitative`, `benchmarks.scaling` and `benchmarks.ablations` draw the other
images of that folder; tests/test_documentation.py runs the command.
"""

import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

import benchmarks.quiet_tensorflow  # noqa: E402, F401

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import deeplab_tf  # noqa: E402
from deeplab_tf import visualize  # noqa: E402
from deeplab_tf.convert import shapes, voc2012  # noqa: E402

SIDE = 193


def draw_badges() -> str:
    """Returns an SVG with the tested versions, from setup.py and constraints.txt."""
    setup = (ROOT / "setup.py").read_text()
    constraints = (ROOT / "constraints.txt").read_text()
    pythons = re.findall(r"Python :: (3\.\d+)", setup)
    ranges = {"Python": (pythons[0], pythons[-1])}
    for title in ("TensorFlow", "Keras"):
        lowest = re.search(rf'"{title.lower()}>=([\d.]+)"', setup)[1]
        newest = re.search(rf"^{title.lower()}==(\d+\.\d+)", constraints, re.M)[1]
        ranges[title] = (lowest, newest)
    parts, x = [], 0
    for title, versions in ranges.items():
        for text, color in ((title, "#444"), (" - ".join(versions), "#26a")):
            width = 8 * len(text) + 12
            parts.append(
                f'<rect x="{x}" width="{width}" height="20" fill="{color}"/>'
                f'<text x="{x + width / 2:g}" y="14">{text}</text>'
            )
            x += width
        x += 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x - 8}" height="20" '
        'font-family="monospace" font-size="12" fill="#fff" text-anchor="middle">'
        f"{''.join(parts)}</svg>\n"
    )


def draw_masks(info: deeplab_tf.DatasetInfo) -> np.ndarray:
    """Returns an image, its class ids as grey levels, as colours, and the overlay."""
    image, label = shapes.draw_scene(np.random.default_rng(3), (SIDE, SIDE))
    label[label == info.ignore_label] = 0
    overlay = visualize.overlay(image, label, info)
    ids = np.repeat(label[..., None], 3, axis=2)
    sheet = [image, ids, visualize.colorize(label, info), overlay]
    captions = ("image", "_make_label.png", "_color.png", "_overlay.png")
    return visualize.add_captions(visualize.contact_sheet(sheet, 4), captions)


def draw_crops(info: deeplab_tf.DatasetInfo, records: str) -> np.ndarray:
    """Returns training samples of one image, with their labels."""
    data = deeplab_tf.DataConfig(records, crop_size=(SIDE, SIDE))
    batches = deeplab_tf.load_dataset(data, "train", training=True)
    images, labels = next(batches.take(1).as_numpy_iterator())
    overlays = (
        deeplab_tf.overlay(np.uint8(image), label[..., 0], info)
        for image, label in zip(images[:4], labels[:4], strict=True)
    )
    return visualize.contact_sheet(list(overlays), 4)


def main(folder: pathlib.Path = IMAGES) -> None:
    """Writes the images into a folder."""
    (folder / "tested.svg").write_text(draw_badges())
    with tempfile.TemporaryDirectory() as scratch:
        source, records = f"{scratch}/shapes", f"{scratch}/tfrecord"
        info = shapes.write(source, 1, 1, 1, image_size=(SIDE, SIDE))
        voc2012.convert(source, records)
        sheets = {"masks": draw_masks(info), "crops": draw_crops(info, records)}
    for name, sheet in sheets.items():
        Image.fromarray(sheet).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
