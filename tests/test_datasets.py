"""Datasets of every kind, converted, validated, trained on and evaluated."""

import json
import os
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import small_datasets
import small_tfds
import tensorflow as tf
from PIL import Image
from program_runs import assert_refused, run

from deeplab_tf.data.info import dataset_info
from deeplab_tf.training.resume import read_experiment

TRAIN, EVAL = "deeplab_tf.programs.train", "deeplab_tf.programs.eval"
TRAINING = (
    *("--model_variant=mobilenet_v2", "--depth_multiplier=0.1"),
    *("--train_crop_size=65,65", "--train_batch_size=2"),
    *("--training_number_of_steps=5", "--fine_tune_batch_norm=false"),
)

pytestmark = pytest.mark.usefixtures("shallow")


class Dataset(NamedTuple):
    """A dataset that is ready for training.

    Attributes:
        location: The flags that locate it.
        pixels: Labelled pixels of each class in `eval_split`, counted in the source.
        name: Its name in the metrics.
        train_split: A split to train on.
        eval_split: A split to evaluate.
    """

    location: tuple[str, ...]
    pixels: list[int]
    name: str
    train_split: str = "train"
    eval_split: str = "val"


def convert(converter, folder, pixels, name, *arguments, **fields):
    """Runs a converter that writes to `records`; returns the dataset."""
    out = folder / "records"
    module = f"deeplab_tf.programs.convert.{converter}"
    assert f"{out}: " in run(module, *arguments, f"--output_dir={out}")
    return Dataset((f"--dataset_dir={out}",), pixels, name, **fields)


def count_pixels(paths, num_classes):
    """Returns the number of pixels of each class in label files."""
    counts = np.zeros(256, int)
    for path in paths:
        counts += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
    return counts[:num_classes].tolist()


def ade20k(folder, _, num_classes=151):
    root = small_datasets.write_ade20k(folder / "source")
    # The label for validation repeats 0, 1, ... 150 over 600 pixels.
    pixels = np.bincount(np.arange(600) % 151)
    pixels[0] = 0
    name = {151: "ade20k", 150: "ade20k_150"}[num_classes]
    return convert(
        *("ade20k", folder, pixels[151 - num_classes :].tolist(), name),
        *(f"--ade20k_root={root}", f"--num_classes={num_classes}"),
    )


def ade20k_150(folder, request):
    return ade20k(folder, request, num_classes=150)


def cityscapes(folder, _):
    root = small_datasets.write_cityscapes(folder / "source", coarse=False)
    # The label for validation repeats the ids 0..33 over 600 pixels: 18 times up to
    # id 21, vegetation, which is the ninth class, and 17 times after it.
    return convert(
        *("cityscapes", folder, [18] * 9 + [17] * 10, "cityscapes"),
        *(f"--cityscapes_root={root}", "--num_shards=2"),
        train_split="train_fine",
        eval_split="val_fine",
    )


def coco(folder, _):
    pytest.importorskip("pycocotools", reason="needs the extra coco")
    annotations = small_datasets.CocoBuilder(folder / "source")
    first, second = annotations.add_image("1.jpg"), annotations.add_image("2.jpg")
    for image in (first, second):
        annotations.add_object(image, "couch", [small_datasets.rectangle(0, 0, 36, 36)])
    annotations.add_object(
        first, "dog", {"size": [40, 60], "counts": encode_rectangle(3, 50, 10, 5)}
    )
    crowd = {"size": [40, 60], "counts": encode_rectangle(0, 40, 10, 4)}
    annotations.add_object(first, "person", crowd, iscrowd=1)
    annotations.save()
    pixels = np.zeros(21, int)
    # Of 40 x 60 pixels; the pixels of the crowd are ignored.
    pixels[[0, 12, 18]] = 2 * (2400 - 36 * 36) - 50 - 40, 50, 2 * 36 * 36
    return convert(
        *("coco_voc", folder, pixels.tolist(), "coco_voc", "--split=train"),
        *(f"--annotations={annotations.path}", f"--image_dir={annotations.image_dir}"),
        "--num_shards=1",
        eval_split="train",
    )


def encode_rectangle(top, left, height, width):
    """Returns COCO run lengths of a rectangle in 40 x 60 pixels, column by column."""
    first = 40 * left + top
    between = [40 - height, height] * (width - 1)
    rest = 2400 - first - height - sum(between)
    return [first, height, *between, rest]


def tensorflow_datasets(folder, _):
    described = {"image": small_tfds.rgb(), "mask": small_tfds.grey()}
    images, labels = small_tfds.noise_samples(3, 1)
    splits = {
        "train": small_tfds.make_examples(*small_tfds.noise_samples(5, 0)),
        "test": small_tfds.make_examples(images, labels),
    }
    small_tfds.prepare(folder / "tfds", "toy", described, splits, shards=2)
    pixels = sum(np.bincount(label.ravel(), minlength=256) for label in labels)
    return Dataset(
        ("--dataset=tfds:toy", f"--dataset_dir={folder}/tfds"),
        pixels[:3].tolist(),
        "tfds:toy",
        train_split="train[1:]",
        eval_split="test",
    )


CLASSES = ("floor", "ball", "cat", "unicorn")
COLORS = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200))
WHITE = (255, 255, 255)
# Rows of each class in three labels of 40 rows and 50 columns; the rest is void.
ROWS = ((30, 10, 0, 0), (20, 0, 0, 0), (20, 0, 20, 0))
PIXELS = [70 * 50, 10 * 50, 20 * 50, 0]


def convert_folder(folder, save_image, *flags, has_color_labels=False):
    """Converts a folder of images and labels.

    Args:
        folder: Where images, labels and records are written.
        save_image: Saves a uint16 image `[40, 50, 5]`; it may drop channels or bits.
        *flags: Further flags of the converter.
        has_color_labels: Whether labels are colours instead of class ids.
    """
    names = [
        " ".join([name, *map(str, color)] if has_color_labels else [name])
        for name, color in zip(CLASSES, COLORS, strict=True)
    ]
    for path in (folder / "photos", folder / "masks"):
        path.mkdir()
    (folder / "classes.txt").write_text("\n".join(names))
    palette = np.array([*COLORS, *[WHITE] * 252], np.uint8)
    for i, rows in enumerate(ROWS):
        ids = np.repeat([0, 1, 2, 3, 255], (*rows, 40 - sum(rows)))
        label = np.repeat(ids[:, None], 50, axis=1).astype(np.uint8)
        mask = Image.fromarray(palette[label] if has_color_labels else label)
        mask.save(folder / f"masks/{i}.png")
        noise = np.random.RandomState(i).randint(0, 65536, (40, 50, 5))
        save_image(folder / f"photos/{i}", noise.astype(np.uint16))
    return convert(
        *("folder", folder, PIXELS, "records"),
        *(f"--image_dir={folder}/photos", f"--label_dir={folder}/masks"),
        *(f"--classes={folder}/classes.txt", *flags),
        eval_split="train",
    )


def grey(folder, _):
    def save(path, pixels):
        Image.fromarray((pixels[..., 0] >> 8).astype(np.uint8)).save(f"{path}.png")

    return convert_folder(folder, save, "--channels=1")


def color_labels(folder, _):
    def save(path, pixels):
        Image.fromarray((pixels[..., :3] >> 8).astype(np.uint8)).save(f"{path}.jpg")

    return convert_folder(
        folder, save, "--ignore_color=255,255,255", has_color_labels=True
    )


FIVE_CHANNELS = ("--channels=5", "--max_value=65535")


def five_channel_npy(folder, _):
    return convert_folder(folder, np.save, *FIVE_CHANNELS)


def five_channel_tiff(folder, _):
    tifffile = pytest.importorskip("tifffile", reason="needs the extra tiff")

    def save(path, pixels):
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(f"{path}.tif", pixels, **options)

    return convert_folder(folder, save, *FIVE_CHANNELS)


def camvid(folder, request):
    root, info = request.getfixturevalue("camvid"), dataset_info("camvid")
    (folder / "classes.txt").write_text("\n".join(info.class_names))
    for split in ("train", "val"):
        found = convert(
            *("folder", folder, [], "camvid", f"--image_dir={root / split}"),
            *(f"--label_dir={root / split}annot", f"--classes={folder}/classes.txt"),
            *("--ignore_label=11", "--name=camvid", f"--split={split}"),
        )
    return found._replace(pixels=count_pixels((root / "valannot").iterdir(), 11))


def voc2012(folder, request):
    root = request.getfixturevalue("voc_root")
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    pixels = count_pixels((root / f"SegmentationClass/{n}.png" for n in names), 21)
    return convert("voc2012", folder, pixels, "pascal_voc_seg", f"--voc_root={root}")


def train(data, logs, *arguments):
    split = f"--train_split={data.train_split}"
    paths = (*data.location, split, f"--train_logdir={logs}")
    return run(TRAIN, *TRAINING, *paths, *arguments)


def evaluate(data, logs, folder):
    """Evaluates a training, whose logs name the dataset; returns the metrics."""
    paths = (f"--checkpoint_dir={logs}", f"--eval_logdir={folder}")
    run(EVAL, *paths, f"--eval_split={data.eval_split}")
    return json.loads((folder / "metrics.json").read_text())


def assert_scored(data, metrics):
    """Checks that exactly the labelled pixels of the source were scored."""
    assert metrics["protocol"]["dataset"] == data.name
    assert np.sum(metrics["confusion_matrix"], axis=1).tolist() == data.pixels
    assert len(metrics["class_names"]) == len(metrics["iou_per_class"])
    assert np.isfinite([metrics["miou"], metrics["pixel_accuracy"]]).all()


# Only the cheapest one is always tested.
SLOW = (
    *(ade20k, ade20k_150, cityscapes, coco, tensorflow_datasets, color_labels),
    *(five_channel_npy, five_channel_tiff, camvid, voc2012),
)


@pytest.mark.parametrize(
    "make", [grey, *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW)]
)
def test_programs_train_and_evaluate_each_kind_of_dataset(
    make, tmp_path, request, eager_execution
):
    data = make(tmp_path, request)
    out = run(
        *("deeplab_tf.programs.doctor", *data.location, "--samples=1"),
        f"--output_dir={tmp_path}/samples",
    )
    assert out.endswith("\nsafe to train\n")
    assert "model.ckpt-5" in train(data, tmp_path / "logs")
    assert_scored(data, evaluate(data, tmp_path / "logs", tmp_path / "eval"))


@pytest.fixture(scope="module")
def own_dataset(tmp_path_factory):
    """Three colour images with the labels of `ROWS`."""
    return color_labels(tmp_path_factory.mktemp("own_dataset"), None)


# The median of the frequencies divided by each: floor has 3500 of the 5000 labelled
# pixels in its three images, ball 500 of 2000 in its one, cat 1000 of 2000. There are
# no unicorns.
WEIGHTS = (0.5 / 0.7, 2.0, 1.0, 1.0)


@pytest.mark.slow
def test_median_frequency_weights_are_computed_and_stored(own_dataset, tmp_path):
    out = train(own_dataset, tmp_path / "logs", "--class_weighting=median_frequency")
    assert "label_weights: 0.7143, 2, 1, 1\n" in out
    experiment = read_experiment(str(tmp_path / "logs"))
    np.testing.assert_allclose(experiment.train.label_weights, WEIGHTS)


def test_class_weighting_and_label_weights_are_exclusive(own_dataset, tmp_path):
    assert_refused(
        "^train.py: --class_weighting=median_frequency cannot be combined with",
        *(TRAIN, *TRAINING, *own_dataset.location, f"--train_logdir={tmp_path}/logs"),
        *("--class_weighting=median_frequency", "--label_weights=1,2,1,1"),
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_bootstrap_classes_are_shown_twice(own_dataset, tmp_path):
    hard = "--bootstrap_classes=cat,ball"
    train(own_dataset, tmp_path / "logs", hard, "--photometric_jitter=0.5")
    data = read_experiment(str(tmp_path / "logs")).data
    assert data.bootstrap_classes == ("cat", "ball")
    assert data.photometric_jitter == 0.5
    assert_scored(
        own_dataset, evaluate(own_dataset, tmp_path / "logs", tmp_path / "eval")
    )


def test_unknown_bootstrap_class_is_refused(own_dataset, tmp_path):
    assert_refused(
        "^train.py: records has no class 'dog'; its classes are floor, ball, cat, uni",
        *(TRAIN, *TRAINING, *own_dataset.location, f"--train_logdir={tmp_path}/logs"),
        "--bootstrap_classes=cat,dog",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_official_shards_need_only_the_dataset_name(tiny_records, tiny_voc, tmp_path):
    folder = tmp_path / "records"
    ours = shutil.ignore_patterns("*.json", ".*")
    shutil.copytree(tiny_records, folder, ignore=ours)
    assert all("-of-" in name for name in os.listdir(folder))
    names = (tiny_voc / "ImageSets/Segmentation/val.txt").read_text().split()
    labels = [tiny_voc / f"SegmentationClass/{name}.png" for name in names]
    location = ("--dataset=pascal_voc_seg", f"--dataset_dir={folder}")
    data = Dataset(location, count_pixels(labels, 21), "pascal_voc_seg")
    # The class frequencies are not stored, so the labels are counted.
    out = train(data, tmp_path / "logs", "--class_weighting=median_frequency")
    experiment = read_experiment(str(tmp_path / "logs"))
    ours = train_and_read_weights(tiny_records, tmp_path / "ours")
    assert experiment.train.label_weights == ours
    assert "label_weights: " in out
    assert_scored(data, evaluate(data, tmp_path / "logs", tmp_path / "eval"))


def train_and_read_weights(dataset_dir, logs):
    """Trains on records with stored class frequencies; returns the label weights."""
    data = Dataset((f"--dataset_dir={dataset_dir}",), [], "")
    steps = "--training_number_of_steps=1"
    train(data, logs, "--class_weighting=median_frequency", steps)
    return read_experiment(str(logs)).train.label_weights


@pytest.mark.slow
def test_five_channel_model_exports_but_refuses_image_files(tmp_path):
    data = five_channel_npy(tmp_path, None)
    logs, exported = tmp_path / "logs", tmp_path / "exported"
    jitter = ("--photometric_jitter=0.5", "--bootstrap_classes=cat")
    train(data, logs, *jitter, "--class_weighting=median_frequency")
    experiment = read_experiment(str(logs))
    assert experiment.model.channels == experiment.info.channels == 5
    np.testing.assert_allclose(experiment.train.label_weights, WEIGHTS)
    out = run(
        "deeplab_tf.programs.export",
        *(f"--checkpoint_path={logs}", f"--export_path={exported}"),
    )
    assert "ImageTensor uint8 [batch, height, width, 5]" in out
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    image = tf.zeros([1, 40, 50, 5], tf.uint8)
    assert serve(ImageTensor=image)["SemanticPredictions"].shape == (1, 40, 50)
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    for model, message in (
        (
            logs,
            "the model takes images with 5 channels, but image files, read as RGB, ha",
        ),
        (exported, "exported takes images with 5 channels, not RGB"),
    ):
        assert_refused(
            message,
            *("deeplab_tf.programs.predict", f"--model={model}"),
            *(f"--images={tmp_path}/photo.png", f"--output_dir={tmp_path}/out"),
        )
    assert not (tmp_path / "out").exists()
