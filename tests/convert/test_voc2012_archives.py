"""Converts the official archives of PASCAL VOC and SBD to records."""

import hashlib
import io
import os
import re
import shutil

import numpy as np
import official_archives
import pytest
import scipy.io
import tensorflow_datasets as tfds
from record_files import read_labels, read_samples

from deeplab_tf.convert import voc2012, voc_sources
from deeplab_tf.data import records
from deeplab_tf.data.info import dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.programs import run_program

TRAIN, VAL = ["2007_000032", "2007_000039"], ["2007_000033"]
# SBD also labels images of VOC, and has its own splits.
SBD_TRAIN = ["2010_000005", "2007_000039", "2008_000008"]
SBD_VAL = ["2007_000033", "2008_000002"]
TRAIN_AUG = [*TRAIN, "2008_000002", "2008_000008", "2010_000005"]


@pytest.fixture
def files():
    """`{archive: {path: content}}` of the two archives, which a test may change."""
    others = sorted({*SBD_TRAIN, *SBD_VAL} - {*TRAIN, *VAL})
    return {
        "voc.tar": official_archives.voc_files(TRAIN, VAL, others),
        "sbd.tgz": official_archives.sbd_files(SBD_TRAIN, SBD_VAL),
    }


@pytest.fixture
def convert(files, tmp_path):
    """A function that writes and converts the archives; returns the split sizes."""

    def write_and_convert(**settings):
        voc, sbd = [
            str(official_archives.write_tar(tmp_path / "archives" / name, of_archive))
            for name, of_archive in files.items()
        ]
        settings = {"official_sizes": False} | settings
        return voc2012.convert_archives(voc, sbd, str(tmp_path / "out"), **settings)

    return write_and_convert


def read_names(folder, split):
    return [sample.name for sample in read_samples(folder, split)]


def test_archives_give_four_splits_in_order(convert, tmp_path):
    sizes = convert()
    assert sizes == {"train": 2, "val": 1, "trainval": 3, "train_aug": 5}
    out = tmp_path / "out"
    assert read_names(out, "train") == TRAIN
    assert read_names(out, "val") == VAL
    assert read_names(out, "trainval") == ["2007_000032", "2007_000033", "2007_000039"]
    assert read_names(out, "train_aug") == TRAIN_AUG
    info = records.read_info(str(out))
    assert (info.name, info.num_classes) == ("pascal_voc_seg", 21)
    assert info.split_sizes == sizes and set(info.content_hashes) == set(sizes)


def test_voc_labels_override_sbd_labels(convert, tmp_path):
    convert()
    for name, _, label in read_samples(tmp_path / "out", "train_aug"):
        value = official_archives.class_id(name)
        assert (label[0, 1:] == value).all() and (label[1:] == value).all()
        # Only SBD's labels here have background in their first pixel.
        assert label[0, 0] == (value if name in TRAIN else 0), name


def test_unlisted_voc_labels_override_sbd_labels(files, convert, tmp_path):
    path = "VOCdevkit/VOC2012/SegmentationClass/2008_000002.png"
    files["voc.tar"][path] = official_archives.png(20)
    convert()
    labels = read_labels(tmp_path / "out", "train_aug")
    assert (labels["2008_000002"] == 20).all()
    assert (labels["2008_000008"] != 20).all()


def test_extracted_files_are_kept_and_reused(convert, tmp_path):
    convert()
    sources = tmp_path / "out_sources"
    assert sorted(os.listdir(sources)) == ["sbd", "voc2012"]
    devkit = sources / "voc2012/VOCdevkit/VOC2012"
    assert sorted(os.listdir(devkit)) == [
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
    ]
    assert os.listdir(devkit / "ImageSets") == ["Segmentation"]
    before = records.read_info(str(tmp_path / "out")).content_hashes
    inode = os.stat(sources / "sbd").st_ino
    shutil.rmtree(tmp_path / "out")
    sizes = voc2012.convert_archives(
        str(tmp_path / "archives/voc.tar"),
        str(tmp_path / "archives/sbd.tgz"),
        str(tmp_path / "out"),
        num_shards=1,
        official_sizes=False,
    )
    assert sizes["train_aug"] == 5
    assert os.stat(sources / "sbd").st_ino == inode
    assert records.read_info(str(tmp_path / "out")).content_hashes == before


def test_official_sizes_are_checked_before_writing(convert, tmp_path):
    with pytest.raises(
        UserError, match=r"split train has 2 images, not the official 1464; add --o"
    ):
        convert(official_sizes=True, work_dir=str(tmp_path / "work"))
    assert sorted(os.listdir(tmp_path)) == ["archives", "work"]


CLS = "benchmark_RELEASE/dataset/cls/2008_000008.mat"


def mat_file(**content):
    file = io.BytesIO()
    scipy.io.savemat(file, content)
    return file.getvalue()


def set_file(archive, name, content):
    def change(files):
        files[archive][name] = content

    return change


def remove_files(archive, part):
    def change(files):
        files[archive] = {k: v for k, v in files[archive].items() if part not in k}

    return change


HALF = np.full((6, 8), 0.5)
# Change that breaks the archives, and pattern of the error message.
BROKEN = {
    "no SBD labels": (
        remove_files("sbd.tgz", "/cls/"),
        "sbd.tgz does not contain benchmark_RELEASE/dataset/cls; is it the right",
    ),
    "no SBD list": (
        remove_files("sbd.tgz", "/val.txt"),
        "sbd.tgz does not contain benchmark_RELEASE/dataset/val.txt; is it the",
    ),
    "no VOC labels": (
        remove_files("voc.tar", "/SegmentationClass/"),
        "voc.tar does not contain VOCdevkit/VOC2012/SegmentationClass; is it",
    ),
    "no VOC list": (
        remove_files("voc.tar", "Segmentation/val.txt"),
        "the VOC archive has no list of the split val",
    ),
    "SBD image that VOC lacks": (
        remove_files("voc.tar", "JPEGImages/2008_000008"),
        "/sbd/.*/train.txt or val.txt lists 2008_000008, but .*/JPEGImages has no such",
    ),
    "SBD list without label": (
        remove_files("sbd.tgz", "2008_000008.mat"),
        "JPEGImages/2008_000008.jpg has no label .*/cls/2008_000008.mat",
    ),
    "broken .mat": (
        set_file("sbd.tgz", CLS, official_archives.mat(3)[:200]),
        "2008_000008.mat is broken: ",
    ),
    "text instead of .mat": (
        set_file("sbd.tgz", CLS, b"moved"),
        "2008_000008.mat is broken: ",
    ),
    ".mat of another struct": (
        set_file("sbd.tgz", CLS, mat_file(GTinst={"Segmentation": HALF})),
        "2008_000008.mat has no GTcls.Segmentation: 'GTcls'",
    ),
    ".mat without the field": (
        set_file("sbd.tgz", CLS, mat_file(GTcls={"Boundaries": HALF})),
        "2008_000008.mat has no GTcls.Segmentation: ",
    ),
    ".mat of fractions": (
        set_file("sbd.tgz", CLS, mat_file(GTcls={"Segmentation": HALF})),
        "2008_000008.mat: GTcls.Segmentation is a float64 array of shape .6, 8.;",
    ),
    ".mat with three channels": (
        set_file("sbd.tgz", CLS, mat_file(GTcls={"Segmentation": np.ones((6, 8, 3))})),
        "2008_000008.mat: GTcls.Segmentation is a float64 array of shape .6, 8, 3.;",
    ),
    ".mat of another size": (
        set_file("sbd.tgz", CLS, official_archives.mat(3, 8, 6)),
        "2008_000008.mat is 6x8, but its image .*/2008_000008.jpg is 8x6",
    ),
    ".mat with an invalid class": (
        set_file("sbd.tgz", CLS, official_archives.mat(21)),
        "2008_000008.mat contains the value 21; valid labels are 0..20 and 255",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_archives_are_refused_before_writing(files, convert, tmp_path, kind):
    change, message = BROKEN[kind]
    change(files)
    with pytest.raises(UserError, match=message):
        convert(work_dir=str(tmp_path / "work"))
    assert sorted(os.listdir(tmp_path)) == ["archives", "work"]


def run_voc2012(capsys, *arguments):
    """Runs the program; returns its output lines or its error message."""
    try:
        run_program("deeplab_tf.programs.convert.voc2012", ["voc2012.py", *arguments])
    except SystemExit as error:
        return error.code
    return capsys.readouterr().out.splitlines()


INVALID_SOURCES = {
    "none": ([], "give either --voc_root or the archives .*; received neither"),
    "both": (["--voc_root=x", "--download"], "give either .*; received both"),
    "VOC alone": (["--voc_archive=x"], "--sbd_archive is missing: .* or --download"),
    "SBD alone": (["--sbd_archive=x"], "--voc_archive is missing: .* or --download"),
    "absent": (
        ["--voc_archive=/none/voc.tar", "--sbd_archive=x"],
        "/none/voc.tar does not exist",
    ),
    "remote folder": (
        ["--voc_archive=x", "--sbd_archive=x", "--work_dir=gs://bucket/work"],
        "--work_dir must be a local folder; received gs://bucket/work",
    ),
}


@pytest.mark.parametrize("kind", INVALID_SOURCES)
def test_exactly_one_source_must_be_given(capsys, tmp_path, kind):
    arguments, message = INVALID_SOURCES[kind]
    line = run_voc2012(capsys, *arguments, f"--output_dir={tmp_path}/out")
    assert re.fullmatch(f"voc2012.py: .*{message}.*", line)
    assert os.listdir(tmp_path) == []


def test_program_prints_split_sizes_and_content_hashes(convert, capsys, tmp_path):
    convert(work_dir=str(tmp_path / "work"))
    hashes = records.read_info(str(tmp_path / "out")).content_hashes
    *contents, last = run_voc2012(
        capsys,
        f"--voc_archive={tmp_path}/archives/voc.tar",
        f"--sbd_archive={tmp_path}/archives/sbd.tgz",
        f"--work_dir={tmp_path}/work",
        "--official_sizes=false",
        f"--output_dir={tmp_path}/out",
    )
    assert last == f"{tmp_path}/out: train 2, val 1, trainval 3, train_aug 5 images"
    assert contents == [f"content hash of {split}: {hashes[split]}" for split in hashes]


def test_mirror_must_have_the_official_archive(files, capsys, tmp_path):
    """Uses a file URL; tests/checkpoints/test_download.py has real connections."""
    path = official_archives.write_tar(tmp_path / "mirror/voc.tar", files["voc.tar"])
    line = run_voc2012(
        capsys, "--download", f"--voc_url=file://{path}", f"--output_dir={tmp_path}/out"
    )
    assert re.fullmatch(
        "voc2012.py: voc.tar has the SHA-256 .*, but .* was published; downloaded .*",
        line,
    )
    assert sorted(os.listdir(tmp_path)) == ["mirror", "out_sources"]


def test_sbd_archive_is_verified_by_its_md5(convert, capsys, tmp_path, monkeypatch):
    convert(work_dir=str(tmp_path / "work"))
    path = tmp_path / "archives/sbd.tgz"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    arguments = (
        *("--download", f"--voc_archive={tmp_path}/archives/voc.tar"),
        *(f"--sbd_url=file://{path}", "--official_sizes=false"),
        *(f"--work_dir={tmp_path}/new", f"--output_dir={tmp_path}/out"),
    )
    for _ in range(2):  # a wrong file that is kept would be used the second time
        line = run_voc2012(capsys, *arguments)
        assert f"its MD5 is {md5}, not {voc_sources.SBD_SOURCE.md5}; " in line
        assert not (tmp_path / "new/downloads/sbd.tgz").exists()
    monkeypatch.setattr(voc_sources, "SBD_SOURCE", voc_sources.Source("", md5=md5))
    assert run_voc2012(capsys, *arguments)[-1].endswith("train_aug 5 images")


def test_checksum_matches_tensorflow_datasets():
    path = tfds.core.utils.tfds_path() / "url_checksums/voc.txt"
    [line] = [x for x in path.read_text().splitlines() if "VOCtrainval_11-May" in x]
    _, _, sha256, name = line.split()
    assert voc_sources.VOC_SOURCE.url.endswith(name)
    assert voc_sources.VOC_SOURCE.sha256 == sha256


@pytest.mark.slow
def test_official_lists_give_the_official_train_aug(asset, tmp_path):
    """Uses 12,031 tiny images with their real names in archives of the real layout."""
    folder = asset("data/voc2012_sample/official_id_lists")
    lists = {
        split: (folder / f"{split}.txt").read_text().split()
        for split in ("train", "val", "trainaug")
    }
    sbd_only = sorted({*lists["trainaug"]} - {*lists["train"]})
    # As in SBD, whose train and val contain images of VOC's train and val.
    sbd_names = sorted([*sbd_only, *lists["train"][::2], *lists["val"][::3]])
    voc = official_archives.write_tar(
        tmp_path / "voc.tar",
        official_archives.voc_files(lists["train"], lists["val"], sbd_only),
    )
    sbd = official_archives.write_tar(
        tmp_path / "sbd.tgz",
        official_archives.sbd_files(
            sbd_names[::4], sorted({*sbd_names} - {*sbd_names[::4]})
        ),
    )
    out = tmp_path / "out"
    sizes = voc2012.convert_archives(str(voc), str(sbd), str(out))
    assert sizes == {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
    assert sizes == dataset_info("pascal_voc_seg").split_sizes
    augmented = read_names(out, "train_aug")
    assert len(augmented) == 10582 and set(augmented) == set(lists["trainaug"])
    assert augmented[:1464] == lists["train"]
    assert augmented[1464:] == sorted(augmented[1464:])
    assert not set(augmented) & set(read_names(out, "val"))
