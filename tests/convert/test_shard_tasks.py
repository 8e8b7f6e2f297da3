"""Shards written by tasks that were pickled equal those of the converters' threads."""

import functools
import pickle
import re

import annotation_files
import numpy as np
import pytest
import small_datasets
import tensorflow as tf
from convert.test_layouts import HEIGHT, WIDTH, save, write_pairs
from etils import epath
from listing import list_outputs

from deeplab_tf.beam import conversion as beam_conversion
from deeplab_tf.convert import (
    ade20k,
    annotated_folder,
    annotations,
    cityscapes,
    coco_voc,
    folder,
    voc2012,
)
from deeplab_tf.convert.class_list import ClassList, MaskOptions, read_class_list
from deeplab_tf.convert.manifest import MANIFEST, Manifest
from deeplab_tf.convert.options import (
    AnnotationOptions,
    ImageOptions,
    Layout,
    RunOptions,
    Splitting,
)
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

NAMES = ("background", "cat", "dog")
CLASSES = ClassList(DatasetInfo("toys", NAMES))


def run_numbers(load, write_shard, numbers, folder, count=None, error=None):
    """Runs tasks like a runner, each in a new state; the first of them twice."""
    del folder
    results = []
    for number in [*numbers][:count]:
        if number == 0:
            write_shard(load(), number)
        results.append(pickle.loads(pickle.dumps(write_shard(load(), number))))
    if error:
        raise error
    return results


def runner_options(count=None, error=None, **options):
    run = functools.partial(run_numbers, count=count, error=error)
    run_tasks = functools.partial(beam_conversion.write_shards, run)
    return RunOptions(run_tasks=run_tasks, **options)


def write_masks(root, count=7):
    """Writes scenes once; later calls keep the files and their times."""
    names = [f"{'abcdefgh'[i]}.png" for i in range(count)]
    if not (root / "images").exists():
        write_pairs(root, *((f"images/{n}", f"masks/{n}") for n in names))


def convert_masks(root, out, run, classes=CLASSES, **settings):
    settings = {"num_shards": 3} | settings
    files = Layout(f"{root}/images", f"{root}/masks")
    folder.convert(files, classes, out, run=run, **settings)


def write_once(write, folder):
    if not folder.exists():
        write(folder)
    return str(folder)


def write_class_masks(root):
    for i, name in enumerate("abc"):
        for class_name in NAMES[1:]:
            mask = np.full((HEIGHT, WIDTH), 0, np.uint8)
            mask[i:, : 2 + i] = 255  # the classes overlap
            save(root / f"masks/{name}_{class_name}.png", mask)
        save(root / f"images/{name}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def convert_class_masks(root, out, run):
    data = write_once(write_class_masks, root / "data")
    pattern = "{image}_{class}.png"
    files = Layout(f"{data}/images", f"{data}/masks", mask_pattern=pattern)
    folder.convert(files, CLASSES, out, num_shards=2, run=run)


def write_soft_masks(root):
    write_masks(root)
    for path in sorted((root / "masks").iterdir()):
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[:, ::3] = 250  # snapped to 255
        mask[:, 1::4] = 0
        save(path, mask)
    (root / "classes.txt").write_text("background\ncat")


def convert_nearest(root, out, run):
    write_once(write_soft_masks, root := root / "data")
    options = MaskOptions((), ["0:background", "255:cat"], True)
    path = epath.Path(root / "classes.txt")
    classes = read_class_list(path, "toys", options)._replace(nearest=True)
    convert_masks(root, out, run, classes)


def convert_annotations(root, out, run):
    write_once(annotation_files.save_images, root / "photos")
    write_once(annotation_files.save_labelme, root / "notes")
    found = annotations.read(str(root / "notes"), AnnotationOptions())
    classes = annotated_folder.make_class_list(found, "toys")
    source = annotated_folder.Source(found, str(root / "photos"))
    annotated_folder.convert(source, classes, out, num_shards=2, run=run)


def convert_tiles(root, out, run):
    write_masks(root)
    convert_masks(root, out, run, options=ImageOptions(None, 4, 1), num_shards=5)


def convert_val_share(root, out, run):
    write_masks(root)
    convert_masks(root, out, run, division=Splitting(val_share=0.4))


def convert_coco(root, out, run):
    pytest.importorskip("pycocotools")
    coco = write_once(small_datasets.write_coco, root / "coco")
    path = f"{coco}/annotations/instances_train2017.json"
    coco_voc.convert(path, f"{coco}/train2017", out, "train", run=run)


CONVERTERS = {
    "masks": lambda root, out, run: (
        write_masks(root),
        convert_masks(root, out, run),
    ),
    "mask_pattern": convert_class_masks,
    "nearest": convert_nearest,
    "annotations": convert_annotations,
    "tiles": convert_tiles,
    "val_share": convert_val_share,
    "coco_voc": convert_coco,
    "cityscapes": lambda root, out, run: cityscapes.convert(
        write_once(small_datasets.write_cityscapes, root / "cs"), out, 2, run=run
    ),
    "ade20k": lambda root, out, run: ade20k.convert(
        write_once(small_datasets.write_ade20k, root / "ade"), out, 2, 150, run=run
    ),
}


def read_files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def compare(convert, root, capsys, **options):
    """Converts in threads and in tasks; returns the output of the tasks."""
    files, printed = {}, {}
    for name, run in (
        ("threads", RunOptions(**options)),
        ("tasks", runner_options(**options)),
    ):
        capsys.readouterr()
        convert(root, str(root / "out"), run)
        printed[name] = capsys.readouterr().out
        files[name] = read_files(root / "out")
        (root / "out").rename(root / name)
    # Names of datasets and paths in messages are those of the same folder.
    assert files["threads"].keys() == files["tasks"].keys()
    assert files["threads"] == files["tasks"]
    assert printed["threads"] == printed["tasks"]
    return printed["tasks"]


@pytest.mark.parametrize("name", CONVERTERS)
def test_tasks_write_the_files_of_threads(name, tmp_path, capsys):
    output = compare(CONVERTERS[name], tmp_path, capsys)
    expected = {
        "mask_pattern": "masks of 3 images overlap in",
        "nearest": "in 7 masks snapped",
        "annotations": "overlap in 20 pixels of 1 image",
        "tiles": "42 images are tiles of larger ones",
    }
    assert expected.get(name, "") in output


def test_voc_in_tasks(tiny_voc, tmp_path, capsys):
    def convert(root, out, run):
        voc2012.convert(str(tiny_voc), out, 2, run=run)

    compare(convert, tmp_path, capsys)


def test_broken_images_are_skipped_in_tasks(tmp_path, capsys):
    write_masks(tmp_path)
    for name in "cef":
        (tmp_path / f"masks/{name}.png").write_bytes(b"broken")
    output = compare(convert_masks, tmp_path, capsys, adds=True, skip_broken=True)
    assert "skipped 3 of 7 images" in output


@pytest.mark.parametrize("seed", range(3))
def test_the_first_error_of_tasks_is_that_of_threads(tmp_path, seed):
    """Also if it is that masks are read in two ways."""
    greys = DatasetInfo("g", NAMES, colors=((0,) * 3, (90,) * 3, (180,) * 3))
    write_masks(tmp_path, 8)
    random = np.random.default_rng(seed)
    for path in sorted((tmp_path / "masks").iterdir()):
        values = [[0, 1], [0, 90], [0, 90, 1], [0]][random.integers(0, 4)]
        save(path, random.choice(values, (HEIGHT, WIDTH)).astype(np.uint8))
    errors = []
    for run in (RunOptions(), runner_options()):
        with pytest.raises(UserError) as error:
            convert_masks(tmp_path, f"{tmp_path}/out", run, ClassList(greys, True))
        errors.append(str(error.value))
        assert not (tmp_path / "out").exists()
    assert errors[0] == errors[1]


def test_records_of_earlier_runs_are_copied_in_tasks(tmp_path):
    write_masks(tmp_path, 7)
    out = tmp_path / "out"
    convert_masks(tmp_path, str(out), RunOptions(adds=True))
    expected = read_files(out)
    mask = tmp_path / "masks/g.png"
    save(mask, np.zeros((HEIGHT, WIDTH), np.uint8))
    copied = []

    def run(load, write_shard, numbers, folder):
        _, tasks, _ = load()
        copied.extend(sum(c is not None for c in task.copies) for task in tasks)
        return run_numbers(load, write_shard, numbers, folder)

    run_tasks = functools.partial(beam_conversion.write_shards, run)
    convert_masks(tmp_path, str(out), RunOptions(adds=True, run_tasks=run_tasks))
    # Of three shards of 3, 3 and 1 images, only the last one changed.
    assert copied == [0]
    found = read_files(out)
    changed = {name for name in found if found[name] != expected.get(name)}
    assert "train-00002-of-00003.tfrecord" in changed
    assert "train-00000-of-00003.tfrecord" not in changed


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_finished_shards_of_a_killed_run_are_kept(tmp_path, is_remote, error):
    write_masks(tmp_path)
    expected = tmp_path / "expected"
    convert_masks(tmp_path, str(expected), RunOptions())
    out = f"{'ram://' if is_remote else ''}{tmp_path}/out/expected"
    # A runner that fails at once leaves nothing.
    with pytest.raises(UserError):
        convert_masks(tmp_path, out, runner_options(0, UserError))
    assert not tf.io.gfile.exists(out)
    with pytest.raises(error):
        convert_masks(tmp_path, out, runner_options(2, error))
    names = [n for n in tf.io.gfile.listdir(out) if n.startswith(f".{MANIFEST}.")]
    assert sorted(names) == [
        f".{MANIFEST}.train-0000{i}-of-00003.tfrecord" for i in (0, 1)
    ]
    written = []

    def run(load, write_shard, numbers, folder):
        _, tasks, _ = load()
        written.extend(task.shard.name for task in tasks)
        return run_numbers(load, write_shard, numbers, folder)

    run_tasks = functools.partial(beam_conversion.write_shards, run)
    convert_masks(tmp_path, out, RunOptions(run_tasks=run_tasks))
    assert written == ["train-00002-of-00003.tfrecord"]
    found = sorted(n for n in tf.io.gfile.listdir(out) if not n.startswith("."))
    assert found == list_outputs(expected)
    for name in found:
        with tf.io.gfile.GFile(f"{out}/{name}", "rb") as file:
            assert file.read() == (expected / name).read_bytes(), name


def test_broken_part_of_a_manifest_is_reported(tmp_path, capsys):
    name = f".{MANIFEST}.train-00000-of-00003.tfrecord"
    (tmp_path / name).write_text("{")
    manifest = Manifest(str(tmp_path))
    assert manifest.found and not manifest.shards
    error = capsys.readouterr().err
    assert re.search(rf"warning: .*{name}.*; its shard will be written again", error)
    assert not (tmp_path / name).exists()
