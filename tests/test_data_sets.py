"""Data sets of every kind: converted, examined, trained on and scored, by programs."""

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


class Converted(NamedTuple):
    """A data set that is ready to be trained on.

    Attributes:
        location: The flags that say where it is.
        pixels: Labelled pixels of each class in `eval_split`, from its source.
        name: Its name in the metrics.
        train_split: A split to train on.
        eval_split: A split to score.
    """

    location: tuple[str, ...]
    pixels: list[int]
    name: str
    train_split: str = "train"
    eval_split: str = "val"


def converted(converter, folder, pixels, name, *arguments, **fields):
    """Runs a converter into the folder `records`; returns what there is."""
    out = folder / "records"
    module = f"deeplab_tf.programs.convert.{converter}"
    assert f"{out}: " in run(module, *arguments, f"--output_dir={out}")
    return Converted((f"--dataset_dir={out}",), pixels, name, **fields)


def pixels_of(paths, num_classes):
    """Returns the pixels of each value below `num_classes` in label files."""
    counts = np.zeros(256, int)
    for path in paths:
        counts += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
    return counts[:num_classes].tolist()


def ade20k(folder, _, num_classes=151):
    root = small_datasets.write_ade20k(folder / "source")
    # The one label for validation: 0, 1, ... 150 and again until 600 pixels are full.
    pixels = np.bincount(np.arange(600) % 151)
    pixels[0] = 0
    name = {151: "ade20k", 150: "ade20k_150"}[num_classes]
    return converted(
        *("ade20k", folder, pixels[151 - num_classes :].tolist(), name),
        *(f"--ade20k_root={root}", f"--num_classes={num_classes}"),
    )


def ade20k_150(folder, request):
    return ade20k(folder, request, num_classes=150)


def cityscapes(folder, _):
    root = small_datasets.write_cityscapes(folder / "source", coarse=False)
    # The one label for validation has the ids 0..33 in turn until 600 pixels are full:
    # 18 times up to 21, which is the ninth class, vegetation being 21; then 17 times.
    return converted(
        *("cityscapes", folder, [18] * 9 + [17] * 10, "cityscapes"),
        *(f"--cityscapes_root={root}", "--num_shards=2"),
        train_split="train_fine",
        eval_split="val_fine",
    )


def coco(folder, _):
    pytest.importorskip("pycocotools", reason="needs the extra coco")
    files = small_datasets.CocoBuilder(folder / "source")
    one, other = files.add_image("1.jpg"), files.add_image("2.jpg")
    for image in (one, other):
        files.add_object(image, "couch", [small_datasets.rectangle(0, 0, 36, 36)])
    files.add_object(one, "dog", {"size": [40, 60], "counts": runs(3, 50, 10, 5)})
    crowd = {"size": [40, 60], "counts": runs(0, 40, 10, 4)}
    files.add_object(one, "person", crowd, iscrowd=1)
    files.save()
    pixels = np.zeros(21, int)
    # Of 40 x 60 pixels; those of the crowd are ignored.
    pixels[[0, 12, 18]] = 2 * (2400 - 36 * 36) - 50 - 40, 50, 2 * 36 * 36
    return converted(
        *("coco_voc", folder, pixels.tolist(), "coco_voc", "--split=train"),
        *(f"--annotations={files.path}", f"--image_dir={files.image_dir}"),
        "--num_shards=1",
        eval_split="train",
    )


def runs(top, left, height, width):
    """Returns COCO's run lengths of a rectangle in 40 x 60 pixels, column by column."""
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
    return Converted(
        ("--dataset=tfds:toy", f"--dataset_dir={folder}/tfds"),
        pixels[:3].tolist(),
        "tfds:toy",
        train_split="train[1:]",
        eval_split="test",
    )


CLASSES = ("floor", "ball", "cat", "unicorn")
COLORS = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200))
WHITE = (255, 255, 255)
# Rows of each class in three labels of 40 rows and 50 columns; the others are void.
ROWS = ((30, 10, 0, 0), (20, 0, 0, 0), (20, 0, 20, 0))
PIXELS = [70 * 50, 10 * 50, 20 * 50, 0]


def own_folder(folder, save_image, *flags, paint=False):
    """Converts images and labels of one's own.

    Args:
        folder: Where everything is put.
        save_image: Saves pixels uint16 `[40, 50, 5]`, or what it likes of them.
        *flags: Further flags of the converter.
        paint: Whether labels are colours.
    """
    names = [
        " ".join([name, *map(str, color)] if paint else [name])
        for name, color in zip(CLASSES, COLORS, strict=True)
    ]
    for path in (folder / "photos", folder / "masks"):
        path.mkdir()
    (folder / "classes.txt").write_text("\n".join(names))
    palette = np.array([*COLORS, *[WHITE] * 252], np.uint8)
    for i, rows in enumerate(ROWS):
        ids = np.repeat([0, 1, 2, 3, 255], (*rows, 40 - sum(rows)))
        label = np.repeat(ids[:, None], 50, axis=1).astype(np.uint8)
        picture = Image.fromarray(palette[label] if paint else label)
        picture.save(folder / f"masks/{i}.png")
        noise = np.random.RandomState(i).randint(0, 65536, (40, 50, 5))
        save_image(folder / f"photos/{i}", noise.astype(np.uint16))
    return converted(
        *("folder", folder, PIXELS, "records"),
        *(f"--image_dir={folder}/photos", f"--label_dir={folder}/masks"),
        *(f"--classes={folder}/classes.txt", *flags),
        eval_split="train",
    )


def grey(folder, _):
    def save(path, pixels):
        Image.fromarray((pixels[..., 0] >> 8).astype(np.uint8)).save(f"{path}.png")

    return own_folder(folder, save, "--channels=1")


def painted(folder, _):
    def save(path, pixels):
        Image.fromarray((pixels[..., :3] >> 8).astype(np.uint8)).save(f"{path}.jpg")

    return own_folder(folder, save, "--ignore_color=255,255,255", paint=True)


FIVE_CHANNELS = ("--channels=5", "--max_value=65535")


def five_channels(folder, _):
    return own_folder(folder, np.save, *FIVE_CHANNELS)


def five_channels_of_tiff(folder, _):
    tifffile = pytest.importorskip("tifffile", reason="needs the extra tiff")

    def save(path, pixels):
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(f"{path}.tif", pixels, **options)

    return own_folder(folder, save, *FIVE_CHANNELS)


def camvid(folder, request):
    root, info = request.getfixturevalue("camvid"), dataset_info("camvid")
    (folder / "classes.txt").write_text("\n".join(info.class_names))
    for split in ("train", "val"):
        found = converted(
            *("folder", folder, [], "camvid", f"--image_dir={root / split}"),
            *(f"--label_dir={root / split}annot", f"--classes={folder}/classes.txt"),
            *("--ignore_label=11", "--name=camvid", f"--split={split}"),
        )
    return found._replace(pixels=pixels_of((root / "valannot").iterdir(), 11))


def voc2012(folder, request):
    root = request.getfixturevalue("voc_root")
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    pixels = pixels_of((root / f"SegmentationClass/{n}.png" for n in names), 21)
    return converted("voc2012", folder, pixels, "pascal_voc_seg", f"--voc_root={root}")


def train(data, logs, *arguments):
    split = f"--train_split={data.train_split}"
    where = (*data.location, split, f"--train_logdir={logs}")
    return run(TRAIN, *TRAINING, *where, *arguments)


def evaluate(data, logs, folder):
    """Returns the metrics of a training; only its logs say what the data are."""
    where = (f"--checkpoint_dir={logs}", f"--eval_logdir={folder}")
    run(EVAL, *where, f"--eval_split={data.eval_split}")
    return json.loads((folder / "metrics.json").read_text())


def assert_scored(data, metrics):
    """Checks that every labelled pixel of the source was scored, and none else."""
    assert metrics["protocol"]["dataset"] == data.name
    assert np.sum(metrics["confusion_matrix"], axis=1).tolist() == data.pixels
    assert len(metrics["class_names"]) == len(metrics["iou_per_class"])
    assert np.isfinite([metrics["miou"], metrics["pixel_accuracy"]]).all()


# The cheapest is always tested.
SLOW = (
    *(ade20k, ade20k_150, cityscapes, coco, tensorflow_datasets, painted),
    *(five_channels, five_channels_of_tiff, camvid, voc2012),
)


@pytest.mark.parametrize(
    "make", [grey, *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW)]
)
def test_a_data_set_from_its_source_to_its_score(make, tmp_path, request):
    data = make(tmp_path, request)
    out = run(
        *("deeplab_tf.programs.doctor", *data.location, "--samples=1"),
        f"--output_dir={tmp_path}/pictures",
    )
    assert out.endswith("\nsafe to train\n")
    assert "model.ckpt-5" in train(data, tmp_path / "logs")
    assert_scored(data, evaluate(data, tmp_path / "logs", tmp_path / "eval"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Three images in colour, whose labels are `ROWS`."""
    return painted(tmp_path_factory.mktemp("own"), None)


# Floor has 3500 of the 5000 labelled pixels of its three images, ball 500 of the 2000
# of its one, cat 1000 of 2000: the median of 0.7, 0.25 and 0.5 by each. Unicorns have
# no frequency.
WEIGHTS = (0.5 / 0.7, 2.0, 1.0, 1.0)


@pytest.mark.slow
def test_rare_classes_weigh_more(own, tmp_path):
    out = train(own, tmp_path / "logs", "--class_weighting=median_frequency")
    assert "label_weights: 0.7143, 2, 1, 1\n" in out
    experiment = read_experiment(str(tmp_path / "logs"))
    np.testing.assert_allclose(experiment.train.label_weights, WEIGHTS)


def test_weights_by_frequency_and_by_hand_exclude_each_other(own, tmp_path):
    assert_refused(
        "^train.py: --class_weighting=median_frequency cannot be combined with",
        *(TRAIN, *TRAINING, *own.location, f"--train_logdir={tmp_path}/logs"),
        *("--class_weighting=median_frequency", "--label_weights=1,2,1,1"),
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_images_of_hard_classes_come_twice(own, tmp_path):
    hard = "--bootstrap_classes=cat,ball"
    train(own, tmp_path / "logs", hard, "--photometric_jitter=0.5")
    data = read_experiment(str(tmp_path / "logs")).data
    assert data.bootstrap_classes == ("cat", "ball")
    assert data.photometric_jitter == 0.5
    assert_scored(own, evaluate(own, tmp_path / "logs", tmp_path / "eval"))


def test_an_unknown_hard_class_is_refused(own, tmp_path):
    assert_refused(
        "^train.py: records has no class 'dog'; its classes are floor, ball, cat, uni",
        *(TRAIN, *TRAINING, *own.location, f"--train_logdir={tmp_path}/logs"),
        "--bootstrap_classes=cat,dog",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_shards_of_the_official_converter_need_the_name_alone(
    tiny_records, tiny_voc, tmp_path
):
    folder = tmp_path / "records"
    ours = shutil.ignore_patterns("*.json", ".*")
    shutil.copytree(tiny_records, folder, ignore=ours)
    assert all("-of-" in name for name in os.listdir(folder))
    names = (tiny_voc / "ImageSets/Segmentation/val.txt").read_text().split()
    labels = [tiny_voc / f"SegmentationClass/{name}.png" for name in names]
    location = ("--dataset=pascal_voc_seg", f"--dataset_dir={folder}")
    data = Converted(location, pixels_of(labels, 21), "pascal_voc_seg")
    # Nothing says how often a class is there, so the labels are counted.
    out = train(data, tmp_path / "logs", "--class_weighting=median_frequency")
    experiment = read_experiment(str(tmp_path / "logs"))
    ours = train_weights(tiny_records, tmp_path / "ours")
    assert experiment.train.label_weights == ours
    assert "label_weights: " in out
    assert_scored(data, evaluate(data, tmp_path / "logs", tmp_path / "eval"))


def train_weights(dataset_dir, logs):
    """Returns the weights of a training whose records are with their counts."""
    data = Converted((f"--dataset_dir={dataset_dir}",), [], "")
    steps = "--training_number_of_steps=1"
    train(data, logs, "--class_weighting=median_frequency", steps)
    return read_experiment(str(logs)).train.label_weights


@pytest.mark.slow
def test_other_channels_are_jittered_exported_and_not_predicted(tmp_path):
    data = five_channels(tmp_path, None)
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
            "the model takes images of 5 channels, but image files, read as RGB, ha",
        ),
        (exported, "exported takes images of 5 channels, not RGB"),
    ):
        assert_refused(
            message,
            *("deeplab_tf.programs.predict", f"--model={model}"),
            *(f"--images={tmp_path}/photo.png", f"--output_dir={tmp_path}/out"),
        )
    assert not (tmp_path / "out").exists()
