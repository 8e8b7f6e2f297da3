"""The scripts in examples/ run as documented; test_documentation runs the notebook."""

import dataclasses
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from small_zoo import REAL, add_real_checkpoint, add_tiny_checkpoint

import deeplab_tf
from deeplab_tf.checkpoints.zoo import ZOO
from deeplab_tf.data.info import dataset_info

NAME = "mobilenetv2_coco_voc_trainaug"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """A function that runs an example in an empty folder and returns what it prints.

    `replacements` are pairs of texts in the example, such as other numbers of steps.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPLAB_TF_CACHE", str(tmp_path / "cache"))

    def run(name, *arguments, replacements=()):
        source = (ROOT / "examples" / name).read_text()
        assert len(source.splitlines()) <= 60
        for old, new in replacements:
            assert source.count(old) == 1
            source = source.replace(old, new)
        (tmp_path / name).write_text(source)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(tmp_path / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def tiny_checkpoint(monkeypatch, tmp_path):
    """A small checkpoint under the name of an official one."""
    add_tiny_checkpoint(monkeypatch, tmp_path)
    monkeypatch.setitem(ZOO, NAME, dataclasses.replace(ZOO["tiny"], name=NAME))


def write_photos(folder, count):
    """Writes photos of a red rectangle on green, and black-and-white masks."""
    random = np.random.RandomState(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((72, 96), bool)
        y, x = random.randint(0, 36, 2)
        mask[y : y + 36, x : x + 48] = True
        image = np.where(mask[..., None], (200, 60, 50), (60, 130, 70))
        noisy = np.clip(image + random.normal(0, 9, image.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"images/{i}.jpg")
        Image.fromarray(np.uint8(mask) * 255).save(folder / f"masks/{i}.png")


def read_iou(printed):
    return float(re.search(r"object on held-out photos: ([\d.]+)", printed)[1])


SETTINGS = "steps, epochs, size = 150, 5, 257"


def test_own_photos(run, tiny_checkpoint, tmp_path, eager_execution):
    data = tmp_path / "my_data"
    write_photos(data, 8)
    shorter = [(SETTINGS, "steps, epochs, size = 4, 2, 65")]
    printed = run("own_photos.py", "my_data", replacements=shorter)
    model = deeplab_tf.from_pretrained(str(data / "model.keras"))
    records = deeplab_tf.DataConfig(str(data / "records"))
    val = deeplab_tf.load_dataset(records, "val", training=False)
    metrics = deeplab_tf.evaluate(model, val)
    assert (metrics["images"], len(metrics["iou_per_class"])) == (2, 2)
    assert read_iou(printed) == metrics["iou_per_class"][1]
    with Image.open(data / "overlays/7.png") as overlay:
        assert overlay.size == (96, 72)


def copy_photos(voc_root, folder, count):
    """Copies real photos, and makes black-and-white masks of the objects in them."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for path in sorted((voc_root / "SegmentationClass").glob("*.png"))[:count]:
        shutil.copy(voc_root / f"JPEGImages/{path.stem}.jpg", folder / "images")
        with Image.open(path) as label:
            mask = np.uint8(np.array(label) > 0) * 255
        Image.fromarray(mask).save(folder / "masks" / path.name)


@pytest.mark.slow
def test_own_photos_learns_real_objects(run, voc_root, voc_checkpoint, tmp_path):
    (tmp_path / NAME).symlink_to(voc_checkpoint.rpartition("/")[0])
    copy_photos(voc_root, tmp_path / "my_data", 40)
    smaller = [(SETTINGS, "steps, epochs, size = 100, 5, 129")]
    assert read_iou(run("own_photos.py", "my_data", replacements=smaller)) > 0.5


def read_miou(printed):
    return float(re.match(r"mIoU ([\d.]+)%; published on all", printed)[1])


def test_official_checkpoint(run, tiny_checkpoint, tiny_voc, tmp_path):
    printed = run("official_checkpoint.py", str(tiny_voc))
    assert 0 < read_miou(printed) < 10  # random weights
    assert [x.split()[0] for x in printed.splitlines()[1:-1]] == list(
        dataset_info("pascal_voc_seg").class_names
    )
    assert printed.splitlines()[-1] == f"exported: mIoU {read_miou(printed):.2f}%"
    assert (tmp_path / "exported/saved_model.pb").exists()


@pytest.mark.slow
def test_official_checkpoint_with_its_weights(
    run, voc_root, voc_checkpoint, monkeypatch, tmp_path
):
    folder = voc_checkpoint.rpartition("/")[0]
    archive = add_real_checkpoint(monkeypatch, tmp_path, folder)
    row = dataclasses.replace(ZOO[NAME], sha256=ZOO[REAL].sha256)
    monkeypatch.setitem(ZOO, NAME, row)
    shutil.move(archive, archive.parent / row.archive)
    printed = run("official_checkpoint.py", str(voc_root))
    assert read_miou(printed) == 76.04  # as in test_real_images
    exported = float(re.search(r"exported: mIoU (\S+)%", printed)[1])
    assert exported == pytest.approx(76.04, abs=0.0101)
