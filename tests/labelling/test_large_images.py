"""An image of 20,000 x 20,000 pixels is converted, trained on and labelled."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deeplab_tf.data import records
from deeplab_tf.images import decoding, mask_files, strips
from deeplab_tf.images.tiles import place_tiles

SIDE, CROP, STRIDE = 20_000, 1000, 32
TESTS = Path(__file__).parent.parent
# Runs a program, given by its module, with a shallow network, and prints its peak
# memory in MiB. The peak of a child process that `resource` reports includes the
# memory of this process.
LAUNCHER = """
import sys
from deeplab_tf.memory import peak_bytes
from deeplab_tf.programs import run_program, start_tensorflow
start_tensorflow()
from shallow_network import shallow_mobilenet_v2
with shallow_mobilenet_v2():
    run_program(sys.argv[1], sys.argv[1:])
print(peak_bytes() >> 20)
"""
MODEL = (
    *("--output_stride=32", "--depth_multiplier=0.35"),
    *("--add_image_level_feature=false", "--decoder_output_stride="),
)


def run_measured(program, *arguments):
    """Runs a program in another process and returns its peak memory in MiB."""
    command = [sys.executable, "-c", LAUNCHER, f"deeplab_tf.programs.{program}"]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    result = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


def draw(top, left, height, width):
    """Returns image and label of a part of the scene, whose colours tell its place."""
    y, x = np.ogrid[top : top + height, left : left + width]
    label = (y // 500 + x // 700) % 3
    red = label * 80 + (y // 16 * 37 + x // 16 * 91) % 90
    pixels = np.stack([red, *np.broadcast_arrays(y % 256, x % 256)], -1)
    return pixels.astype(np.uint8), label.astype(np.uint8)


def write_png(path, part):
    """Writes the image (0) or the label (1) as a PNG, strip by strip."""
    with open(path, "wb") as file:

        def write(kind, content):
            checksum = zlib.crc32(kind + content)
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", checksum))

        file.write(b"\x89PNG\r\n\x1a\n")
        color_type = 0 if part else 2
        header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, color_type, 0, 0, 0)
        write(b"IHDR", header)
        deflate = zlib.compressobj(1)
        for top in range(0, SIDE, 200):
            rows = draw(top, 0, 200, SIDE)[part].reshape(200, -1)
            rows = np.pad(rows, ((0, 0), (1, 0)))  # no filter
            write(b"IDAT", deflate.compress(rows.tobytes()))
        write(b"IDAT", deflate.flush())
        write(b"IEND", b"")


def check_records(folder, random):
    """Compares the names of all records and some of their images with the truth."""
    tiles = {
        f"a@{t.top:05d},{t.left:05d}": t for t in place_tiles(SIDE, SIDE, 2048, 128)
    }
    paths = records.find_shards(str(folder), "train")
    chosen, names = set(random.choice(sorted(tiles), 6)), []
    for image, label, name in tf.data.TFRecordDataset(paths).map(records.parse):
        names.append(name.numpy().decode())
        if names[-1] in chosen:
            pixels, truth = draw(*tiles[names[-1]])
            np.testing.assert_array_equal(decoding.decode_image(image), pixels)
            found = decoding.decode_label(label)[..., 0]
            np.testing.assert_array_equal(found, truth)
    assert names == sorted(tiles)


def write_crops(folder, random):
    """Writes parts of the image, and returns the place of each."""
    places = random.integers(0, (SIDE - CROP) // STRIDE, (4, 2)) * STRIDE
    places = {f"crop{i}": place for i, place in enumerate(places.tolist())}
    for name, place in places.items():
        Image.fromarray(draw(*place, CROP, CROP)[0]).save(folder / f"{name}.png")
    return places


@pytest.mark.slow
def test_large_images_need_little_memory(tmp_path):
    random = np.random.default_rng(0)
    images, masks, out = (tmp_path / name for name in ("images", "masks", "out"))
    for part, folder in enumerate((images, masks)):
        folder.mkdir()
        write_png(folder / "a.png", part)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    peak = run_measured(
        *("convert.folder", f"--image_dir={images}", f"--label_dir={masks}"),
        *(f"--classes={tmp_path}/classes.txt", f"--output_dir={tmp_path}/records"),
        *("--tile=2048", "--tile_overlap=128"),
    )
    assert peak < 2048
    check_records(tmp_path / "records", random)
    run_measured(
        *("train", f"--dataset_dir={tmp_path}/records", *MODEL),
        *(f"--train_logdir={tmp_path}/train", "--train_crop_size=129,129"),
        *("--train_batch_size=8", "--training_number_of_steps=2"),
        *("--base_learning_rate=0.0001", "--batch_norm_momentum=0.01"),
    )
    places = write_crops(images, random)
    peak = run_measured(
        *("predict", f"--model={tmp_path}/train", f"--images={images}"),
        f"--output_dir={out}",
    )
    assert peak < 3072
    labels = strips.RowReader(out / "a_label.png", channels=1)
    assert labels.header[1:3] == (SIDE, SIDE)
    # The features of the network reach less than 128 pixels far.
    inner = slice(128, -128)
    for name, (top, left) in places.items():
        crop = mask_files.read_index_label(out / f"{name}_label.png")
        rows = labels.read(top, top + CROP)[:, left : left + CROP, 0]
        assert len(np.unique(crop[inner, inner])) > 1
        # Sums are rounded in another order for another size.
        assert (rows != crop)[inner, inner].mean() < 1e-4
