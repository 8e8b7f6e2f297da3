"""Submission archives, unpacked and read as the benchmark servers do."""

import copy
import io
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs
from PIL import Image

from deeplab_tf.convert import cityscapes
from deeplab_tf.data.info import DatasetInfo, dataset_info, generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation import confusion
from deeplab_tf.evaluation.mean_iou import MeanIoU
from deeplab_tf.evaluation.submission import (
    SUBMISSIONS,
    CityscapesSubmission,
    VocSubmission,
)

VOC, CITYSCAPES = dataset_info("pascal_voc_seg"), dataset_info("cityscapes")
SIZE = (1024, 2048)
COMP6 = "results/VOC2012/Segmentation/comp6_test_cls"
LABELS = np.arange(21).reshape(3, 7)
# The name of a Cityscapes image, and a label map of its size.
BERLIN = "berlin_000000_000019_leftImg8bit"
ROAD = np.zeros(SIZE, np.int32)


def voc_palette():
    """Returns the palette of the devkit's `VOCcolormap.m`, uint8 `[256, 3]`."""
    palette = np.zeros((256, 3), np.uint8)
    for i in range(256):
        number, red, green, blue = i, 0, 0, 0
        for j in range(8):
            red |= (number & 1) << (7 - j)
            green |= (number >> 1 & 1) << (7 - j)
            blue |= (number >> 2 & 1) << (7 - j)
            number >>= 3
        palette[i] = red, green, blue
    return palette


def read_bytes(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def unpack(path):
    """Returns `{name: image}` of an archive."""
    file = io.BytesIO(read_bytes(path))
    if path.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    else:
        mode = "r:" if path.endswith(".tar") else "r:gz"
        with tarfile.open(fileobj=file, mode=mode) as archive:
            members = archive.getmembers()
            assert all(member.isfile() for member in members)
            files = {m.name: archive.extractfile(m).read() for m in members}
    return {name: Image.open(io.BytesIO(data)) for name, data in files.items()}


def label_map(seed, size=SIZE, num_classes=19):
    """Returns blocks of random classes, int32."""
    random = np.random.RandomState(seed)
    small = random.randint(0, num_classes, (size[0] // 8, size[1] // 8), np.int32)
    return np.kron(small, np.ones((8, 8), np.int32))


@pytest.mark.parametrize("suffix", [".tgz", ".tar.gz", ".tar"])
@pytest.mark.parametrize("scheme", ["", "ram://"])
def test_voc_archive_has_the_layout_of_the_devkit(scheme, suffix, tmp_path):
    folder = scheme + str(tmp_path)
    tf.io.gfile.makedirs(folder)
    path = f"{folder}/results{suffix}"
    with VocSubmission(path, VOC) as submission:
        submission.add("2008_000006", LABELS)
        submission.add("2011_003999", LABELS[::-1].astype(np.uint8))
    images = unpack(path)
    assert list(images) == [f"{COMP6}/2008_000006.png", f"{COMP6}/2011_003999.png"]
    for image, labels in zip(images.values(), (LABELS, LABELS[::-1]), strict=True):
        assert (image.format, image.mode) == ("PNG", "P")
        np.testing.assert_array_equal(np.array(image), labels)
        palette = np.array(image.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette, voc_palette())
    assert list_outputs(folder) == [f"results{suffix}"]


def test_voc_palette_is_independent_of_the_model_colours(tmp_path):
    path = str(tmp_path / "results.tar")
    colors = tuple((i, i, i) for i in range(21))
    info = DatasetInfo("grey", VOC.class_names, ignore_label=20, colors=colors)
    with VocSubmission(path, info) as submission:
        submission.add("2008_000006", LABELS)
    [image] = unpack(path).values()
    palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette, voc_palette())


def test_comp5_archive_has_its_own_folder(tmp_path):
    path = str(tmp_path / "results.tgz")
    with VocSubmission(path, VOC, competition="comp5") as submission:
        submission.add("2008_000006", LABELS)
    [name] = unpack(path)
    assert name == "results/VOC2012/Segmentation/comp5_test_cls/2008_000006.png"


@pytest.mark.parametrize("scheme", ["", "ram://"])
def test_cityscapes_archive_contains_label_ids(scheme, tmp_path):
    folder = scheme + str(tmp_path)
    tf.io.gfile.makedirs(folder)
    path, labels = f"{folder}/results.zip", ROAD.copy()
    labels[3, :19] = np.arange(19)
    with CityscapesSubmission(path, CITYSCAPES) as submission:
        submission.add(BERLIN, labels)
        # The name in TFRecords.
        submission.add("bonn_000001_000019", ROAD + 18)
    images = unpack(path)
    assert list(images) == [
        "berlin_000000_000019_labelIds.png",
        "bonn_000001_000019_labelIds.png",
    ]
    for image in images.values():
        assert (image.format, image.mode) == ("PNG", "L")
    berlin, bonn = map(np.array, images.values())
    expected = np.full(SIZE, 7)
    # road, sidewalk, building, wall, fence, pole, traffic light, traffic sign,
    # vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle,
    # bicycle
    expected[3, :19] = [
        *(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    ]
    np.testing.assert_array_equal(berlin, expected)
    np.testing.assert_array_equal(bonn, np.full(SIZE, 33))
    assert list_outputs(folder) == ["results.zip"]


@pytest.mark.slow
def test_cityscapes_scores_match_the_official_script(tmp_path):
    # Not importorskip: the slow tests need the extra.
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    names = ["berlin_000000_000019", "berlin_000001_000019", "bonn_000000_000019"]
    predictions = [label_map(seed) for seed in range(3)]
    # All ids, including void; a third equals the prediction.
    ids = cityscapes.CITYSCAPES_IDS
    truths = [label_map(seed, num_classes=34) for seed in range(3, 6)]
    for truth, prediction in zip(truths, predictions, strict=True):
        truth[::3] = np.array(ids)[prediction[::3]]
    truth_files = [tmp_path / f"truth/{name}_gtFine_labelIds.png" for name in names]
    (tmp_path / "truth").mkdir()
    for file, truth in zip(truth_files, truths, strict=True):
        Image.fromarray(truth.astype(np.uint8)).save(file)
    path = str(tmp_path / "results.zip")
    with CityscapesSubmission(path, CITYSCAPES) as submission:
        for name, prediction in zip(names, predictions, strict=True):
            submission.add(f"{name}_leftImg8bit", prediction)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "results")

    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(tmp_path / "results"), None
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    files = [str(file) for file in truth_files]
    found = [official.getPrediction(args, file) for file in files]
    scores = official.evaluateImgLists(found, files, args)

    metric = MeanIoU(19)
    for truth, prediction in zip(truths, predictions, strict=True):
        metric.update_state(cityscapes.train_ids()[truth][None], prediction[None])
    counts = metric.counts.numpy()
    matrix = np.array(scores["confMatrix"])
    assert matrix.sum() == 3 * 1024 * 2048 > counts.sum() > 0
    np.testing.assert_array_equal(matrix[np.ix_(ids, ids)], counts)
    ious = [scores["classScores"][name] for name in CITYSCAPES.class_names]
    np.testing.assert_array_equal(ious, confusion.iou_per_class(counts))
    assert scores["averageScoreClasses"] == pytest.approx(
        confusion.mean_iou(counts), rel=1e-15
    )


# The kind of submission, the images added to it, and the expected message.
REFUSED = {
    "invalid name": (
        VocSubmission,
        [("cat", LABELS)],
        "^cat is not the name of a VOC image, such as 2008_000006$",
    ),
    "longer name": (
        VocSubmission,
        [("2008_000006_1", LABELS)],
        "the name of a VOC image",
    ),
    "non-ASCII digits": (
        VocSubmission,
        [("2008_00000٦", LABELS)],
        "the name of a VOC image",
    ),
    "path": (VocSubmission, [("../2008_000006", LABELS)], "the name of a VOC image"),
    "ignored label": (
        VocSubmission,
        [("2008_000006", np.full((2, 2), 255))],
        "^2008_000006 has the label 255; the classes of pascal_voc_seg are 0..20$",
    ),
    "negative label": (
        VocSubmission,
        [("2008_000006", LABELS - 1)],
        "has the label -1; the classes of",
    ),
    "batch": (
        VocSubmission,
        [("2008_000006", LABELS[None])],
        r"integers \[height, width\]; received int64 \[1, 3, 7\]$",
    ),
    "logits": (
        VocSubmission,
        [("2008_000006", np.ones((3, 7), np.float32))],
        r"received float32 \[3, 7\]$",
    ),
    "duplicate image": (
        VocSubmission,
        [("2008_000006", LABELS), ("2008_000006", LABELS)],
        r"^image 2008_000006 was added twice to .*results\.tgz$",
    ),
    "duplicate under two names": (
        CityscapesSubmission,
        [(BERLIN, ROAD), ("berlin_000000_000019", ROAD)],
        r"^image berlin_000000_000019 was added twice to .*results\.zip$",
    ),
    "name of another dataset": (
        CityscapesSubmission,
        [("2008_000006", ROAD)],
        "^2008_000006 is not the name of a Cityscapes image, such as berlin_000000_",
    ),
    "name of a label file": (
        CityscapesSubmission,
        [("berlin_000000_000019_gtFine_labelIds", ROAD)],
        "is not the name of a Cityscapes image",
    ),
    "label out of range": (
        CityscapesSubmission,
        [(BERLIN, ROAD + 19)],
        "has the label 19; the classes of cityscapes are 0..18$",
    ),
    "half the size": (
        CityscapesSubmission,
        [(BERLIN, ROAD[::2, ::2])],
        f"^the labels of {BERLIN} are 1024x512; the Cityscapes server needs "
        "2048x1024, the size of its images$",
    ),
    "empty VOC archive": (
        VocSubmission,
        [],
        r"results\.tgz would be empty: no image was",
    ),
    "empty Cityscapes archive": (CityscapesSubmission, [], r"results\.zip would be"),
}
ARCHIVES = {
    VocSubmission: ("results.tgz", VOC, ("2008_000007", LABELS)),
    CityscapesSubmission: ("results.zip", CITYSCAPES, ("ulm_000001_000019", ROAD)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_invalid_submission_is_refused_without_output(kind, tmp_path):
    submission_class, images, message = REFUSED[kind]
    name, info, valid = ARCHIVES[submission_class]
    with (
        pytest.raises(UserError, match=message),
        submission_class(str(tmp_path / name), info) as submission,
    ):
        if images:
            submission.add(*valid)
        for image in images:
            submission.add(*image)
    assert not list(tmp_path.iterdir())


def test_interruption_keeps_the_earlier_archive(tmp_path):
    path = str(tmp_path / "results.tgz")
    for labels in (LABELS, LABELS[:, :2]):
        with VocSubmission(path, VOC) as submission:
            submission.add("2008_000006", labels)
    before = read_bytes(path)
    [image] = unpack(path).values()
    assert image.size == (2, 3)
    with pytest.raises(KeyboardInterrupt), VocSubmission(path, VOC) as submission:
        submission.add("2008_000006", LABELS)
        raise KeyboardInterrupt
    assert read_bytes(path) == before
    assert list_outputs(tmp_path) == ["results.tgz"]


def test_archive_blocked_by_a_folder_leaves_no_temporary_files(tmp_path):
    path = tmp_path / "results.tgz"
    with (
        pytest.raises(UserError, match="is not a regular file"),
        VocSubmission(str(path), VOC) as submission,
    ):
        submission.add("2008_000006", LABELS)
        path.mkdir()
    assert list_outputs(tmp_path) == ["results.tgz"]


def test_foreign_archive_is_not_overwritten(tmp_path):
    path = tmp_path / "results.tgz"
    path.write_text("years of work")
    with pytest.raises(UserError, match="was not written by deeplab_tf"):
        VocSubmission(str(path), VOC).__enter__()
    assert path.read_text() == "years of work"


def test_missing_folder_is_refused_before_the_first_image(tmp_path):
    path = str(tmp_path / "missing/results.tgz")
    message = r"results\.tgz cannot be written, because there is no .*/missing; create"
    with pytest.raises(UserError, match=message):
        VocSubmission(path, VOC).__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        (
            "pascal_voc_seg",
            "out/r.zip",
            r"^out/r.zip must end with .tgz or .tar.gz or ",
        ),
        ("pascal_voc_seg", "tgz", "^tgz must end with .tgz"),
        ("cityscapes", "r.tgz", "^r.tgz must end with .zip, as cityscapes requires"),
    ],
)
def test_wrong_suffix_is_refused(name, path, message):
    with pytest.raises(UserError, match=message):
        SUBMISSIONS[name](path, dataset_info(name))


@pytest.mark.parametrize(
    ("name", "path", "info", "message"),
    [
        ("pascal_voc_seg", "r.tgz", CITYSCAPES, "its 21 classes; cityscapes has 19$"),
        ("cityscapes", "r.zip", generic_info(20), "its 19 classes; unnamed has 20$"),
    ],
)
def test_class_count_must_match(name, path, info, message):
    with pytest.raises(UserError, match=f"^a submission to {name} needs {message}"):
        SUBMISSIONS[name](path, info)


def test_unknown_competition_is_refused():
    with pytest.raises(UserError, match="must be comp5 or comp6; received 'comp3'"):
        VocSubmission("results.tgz", VOC, competition="comp3")
