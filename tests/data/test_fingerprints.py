"""Fingerprints tell the records of different workers apart."""

import shutil

import pytest

from deeplab_tf.data.sources import fingerprint_split


@pytest.fixture
def copy(tiny_records, tmp_path):
    return shutil.copytree(tiny_records, tmp_path / "copy")


def test_copies_have_the_same_fingerprint(tiny_records, copy):
    expected = fingerprint_split(None, tiny_records, "train")
    assert fingerprint_split(None, str(copy), "train") == expected
    assert expected.startswith("3 with checksum ")


def test_other_records_and_classes_have_other_fingerprints(tiny_records, copy):
    expected = fingerprint_split(None, tiny_records, "train")
    assert fingerprint_split(None, tiny_records, "val") != expected
    info = copy / "dataset_info.json"
    kept = info.read_text()
    info.unlink()
    assert fingerprint_split(None, str(copy), "train") != expected
    info.write_text(kept)
    assert fingerprint_split(None, str(copy), "train") == expected
    [first, *_] = sorted(copy.glob("val-*"))
    [replaced, *_] = sorted(copy.glob("train-*"))
    # As many records, but of other sizes.
    shutil.copy(first, replaced)
    assert fingerprint_split(None, str(copy), "train") != expected
