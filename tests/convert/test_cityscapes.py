"""Converts Cityscapes in its official layout to records."""

import os
import shutil

import numpy as np
import pytest
import small_datasets
from record_files import read_samples

from deeplab_tf.convert import cityscapes
from deeplab_tf.data import records
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program


@pytest.fixture
def root(tmp_path):
    return small_datasets.write_cityscapes(tmp_path / "cityscapes")


TRAIN = ["aachen_000000_000019", "ulm_000001_000019"]
EXTRA = ["augsburg_000000_000019", "nuernberg_000001_000019"]
VAL, TEST = ["munster_000000_000019"], ["berlin_000000_000019"]
SPLITS = {
    "train_fine": TRAIN,
    "val_fine": VAL,
    "test_fine": TEST,
    "trainval_fine": TRAIN + VAL,
    "train_coarse": TRAIN + EXTRA,
    "trainval_coarse": TRAIN + EXTRA + VAL,
}


def test_official_splits_are_written_in_sorted_order(root, tmp_path):
    out = tmp_path / "out"
    sizes = cityscapes.convert(str(root), str(out), num_shards=3)
    assert sizes == {split: len(stems) for split, stems in SPLITS.items()}
    assert set(sizes) == set(dataset_info("cityscapes").split_sizes)
    for split, stems in SPLITS.items():
        assert [sample.name for sample in read_samples(out, split)] == stems
    assert len(records.find_shards(str(out), "train_fine")) == 2


def test_records_contain_image_file_and_train_ids(root, tmp_path):
    out = tmp_path / "out"
    cityscapes.convert(str(root), str(out), num_shards=1)
    [(_, image, fine)] = read_samples(out, "val_fine")
    path = root / "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png"
    assert image == path.read_bytes()
    # The pixels of the first row have the ids 0, 1, 2, ..., 29.
    void = 255
    assert fine[0].tolist() == (
        [void] * 7  # unlabeled .. static, dynamic, ground
        + [0, 1, void, void, 2, 3, 4]  # road, sidewalk, parking, rail track, building
        + [void, void, void, 5, void, 6, 7]  # guard rail, bridge, tunnel, pole
        + [8, 9, 10, 11, 12, 13, 14, 15]  # vegetation .. bus
        + [void]  # caravan
    )
    # The second row has the ids 30, 31, 32, 33, 0: trailer, train, motorcycle, bicycle.
    assert fine[1, :5].tolist() == [void, 16, 17, 18, void]


def test_coarse_splits_use_coarse_labels(root, tmp_path):
    out = tmp_path / "out"
    cityscapes.convert(str(root), str(out), num_shards=1)
    # The coarse labels have no id above 7, road.
    for split in ("train_coarse", "trainval_coarse"):
        found = read_samples(out, split)
        assert len(found) == len(SPLITS[split])
        assert all(np.unique(x.label).tolist() == [0, 255] for x in found)
    assert all((x.label == 18).any() for x in read_samples(out, "trainval_fine"))
    [test] = read_samples(out, "test_fine")
    assert (test.label == 255).all()


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        (["gtCoarse"], ["train_fine", "val_fine", "test_fine", "trainval_fine"]),
        # gtCoarse is one archive, its images are another of 44 GB.
        (
            ["leftImg8bit/train_extra", "leftImg8bit/test"],
            ["train_fine", "val_fine", "trainval_fine"],
        ),
        (["gtCoarse", "leftImg8bit/train", "gtFine/test"], ["val_fine"]),
    ],
)
def test_splits_with_missing_folders_are_skipped(root, tmp_path, removed, expected):
    for folder in removed:
        shutil.rmtree(root / folder)
    sizes = cityscapes.convert(str(root), str(tmp_path / "out"), num_shards=1)
    assert list(sizes) == expected
    assert records.list_splits(str(tmp_path / "out")) == sorted(expected)


@pytest.mark.slow
def test_ids_match_cityscapesscripts():
    # Not importorskip: running the slow tests requires the extra.
    from cityscapesscripts.helpers.labels import labels as official_labels

    train_ids, info = cityscapes.train_ids(), dataset_info("cityscapes")
    by_id = {label.id: label for label in official_labels}
    assert sorted(by_id) == [-1, *range(len(train_ids))]
    # License plates have id -1, which a PNG cannot store.
    assert by_id.pop(-1).trainId == -1
    for number, label in by_id.items():
        assert train_ids[number] == label.trainId
        assert (label.trainId == 255) == label.ignoreInEval
        if not label.ignoreInEval:
            assert info.class_names[label.trainId] == label.name
            assert info.colors[label.trainId] == label.color


ULM = "ulm/ulm_000001_000019"


def remove_file(name):
    return lambda root: (root / name).unlink()


def set_id(value, folder="gtFine/train"):
    def change(root):
        kind = folder.split("/")[0]
        label = np.full((20, 30), 7)
        label[3, 4] = value
        small_datasets.save_label(root / f"{folder}/{ULM}_{kind}_labelIds.png", label)

    return change


def shrink_label(root):
    path = root / f"gtFine/train/{ULM}_gtFine_labelIds.png"
    small_datasets.save_label(path, np.zeros((19, 30)))


def rename_to_train_ids(root):
    path = root / f"gtFine/train/{ULM}_gtFine_labelIds.png"
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))


def rename_images(root):
    (root / "leftImg8bit").rename(root / "images")


def remove_labels(root):
    shutil.rmtree(root / "gtFine")
    shutil.rmtree(root / "gtCoarse")


def remove_cities(root):
    shutil.rmtree(root / "leftImg8bit/val/munster")


# Change that breaks the dataset, and pattern of the error message.
BROKEN = {
    "image without label": (
        remove_file(f"gtFine/train/{ULM}_gtFine_labelIds.png"),
        f"/leftImg8bit/train/{ULM}_leftImg8bit.png has no label "
        f".*/gtFine/train/{ULM}_gtFine_labelIds.png",
    ),
    "image without coarse label": (
        remove_file(f"gtCoarse/train/{ULM}_gtCoarse_labelIds.png"),
        f"{ULM}_leftImg8bit.png has no label .*/gtCoarse/train/{ULM}_gtCoarse_labelIds",
    ),
    "label without image": (
        remove_file(f"leftImg8bit/train/{ULM}_leftImg8bit.png"),
        f"/gtFine/train/{ULM}_gtFine_labelIds.png has no image: "
        f".*/leftImg8bit/train/{ULM}_leftImg8bit.png",
    ),
    "training ids only": (
        rename_to_train_ids,
        f"{ULM}_leftImg8bit.png has no label .*{ULM}_gtFine_labelIds.png",
    ),
    "id above the last": (
        set_id(34),
        f"{ULM}_gtFine_labelIds.png contains the value 34; the ids of labelIds files",
    ),
    "training ids in a labelIds file": (
        set_id(255, "gtCoarse/train"),
        f"{ULM}_gtCoarse_labelIds.png contains the value 255; the ids of labelIds fi",
    ),
    "label of another size": (
        shrink_label,
        f"{ULM}_gtFine_labelIds.png is 30x19, but its image .* is 30x20",
    ),
    "renamed folder": (
        rename_images,
        "--cityscapes_root=.*/cityscapes has no folder .*/cityscapes/leftImg8bit;",
    ),
    "no labels": (
        remove_labels,
        "needs train in both leftImg8bit and gtFine of .*/cityscapes",
    ),
    "no cities": (
        remove_cities,
        "/leftImg8bit/val has no files <city>/\\*_leftImg8bit.png",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_dataset_is_refused_before_writing(root, tmp_path, kind):
    change, message = BROKEN[kind]
    change(root)
    with pytest.raises(UserError, match=message):
        cityscapes.convert(str(root), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["cityscapes"]


def test_program_prints_split_sizes(root, tmp_path, capsys):
    for folder in ("gtCoarse", "gtFine/test"):
        shutil.rmtree(root / folder)
    flags = [f"--cityscapes_root={root}", f"--output_dir={tmp_path}/out"]
    run_program("deeplab_tf.programs.convert.cityscapes", ["cityscapes.py", *flags])
    out = capsys.readouterr().out
    assert out == f"{tmp_path}/out: train_fine 2, val_fine 1, trainval_fine 3 images\n"
    # At most 10 shards, none of them empty.
    assert len(records.find_shards(f"{tmp_path}/out", "trainval_fine")) == 3


def test_only_requested_splits_are_written(tmp_path):
    root = small_datasets.write_cityscapes(tmp_path / "cityscapes")
    requested = ("val_fine", "train_fine")
    sizes = cityscapes.convert(str(root), str(tmp_path / "out"), 1, requested)
    assert sizes == {"train_fine": 2, "val_fine": 1}
    assert records.list_splits(str(tmp_path / "out")) == ["train_fine", "val_fine"]
    with pytest.raises(
        UserError, match="--splits=val must be one of train_fine, val_fine"
    ):
        cityscapes.convert(str(root), str(tmp_path / "no"), 1, ("val",))
    shutil.rmtree(root / "gtFine/val")
    with pytest.raises(UserError, match="needs val in both leftImg8bit and gtFine of "):
        cityscapes.convert(str(root), str(tmp_path / "no"), 1, ("val_fine",))
