"""Fixtures of all tests; see README.md for the assets."""

import os
import pathlib

import pytest

import deeplab_tf.programs  # noqa: F401  (TensorFlow without its notices)

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _asset(relative: str) -> pathlib.Path:
    folder = pathlib.Path(os.environ.get("DEEPLAB_TF_ASSETS", ROOT / "../shared"))
    path = (folder / relative).resolve()
    if not path.exists():
        pytest.skip(f"needs {relative} in DEEPLAB_TF_ASSETS ({folder})")
    return path


@pytest.fixture(scope="session")
def voc_root() -> pathlib.Path:
    """Real PASCAL VOC images in their native layout."""
    return _asset("data/voc2012_sample/VOCdevkit/VOC2012")


@pytest.fixture(scope="session")
def camvid() -> pathlib.Path:
    """Real CamVid images."""
    return _asset("data/camvid")


@pytest.fixture(scope="session")
def voc_checkpoint() -> str:
    """Prefix of the official MobileNetV2 checkpoint of PASCAL VOC."""
    folder = _asset("weights/mobilenet_v2_voc_trainval")
    return str(folder / "model.ckpt")


@pytest.fixture(scope="session")
def voc_records(voc_root, tmp_path_factory) -> str:
    """TFRecords of the real images."""
    from datasets import voc2012

    folder = str(tmp_path_factory.mktemp("voc") / "records")
    voc2012.convert(str(voc_root), folder)
    return folder
