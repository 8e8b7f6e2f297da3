"""Fixtures of all tests; see README.md for the assets."""

import quiet_tensorflow  # noqa: F401

import gc
import os
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_case import value
from PIL import Image
from shallow_network import shallow_mobilenet_v2
from special_files import SPECIAL_FILES, fail_if_blocked

from deeplab_tf.checkpoints import restore
from deeplab_tf.config import DecoderConfig, ModelConfig
from deeplab_tf.data import pipeline
from deeplab_tf.data.info import DatasetInfo, dataset_info, voc_colors
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.resampling import ResizeLike
from deeplab_tf.serving.saved_model import export_saved_model

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Building a model allocates so many objects that collecting garbage at the default
# thresholds takes a fifth of its time.
gc.freeze()
gc.set_threshold(100_000, 20, 100)


def pytest_collection_finish():
    """Excludes modules and tests from garbage collection, which gets quicker."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _free_graphs():
    """Frees the graphs of a module, which are cyclic garbage of several gigabytes."""
    yield
    objects, *collections = gc.get_count()
    if objects > 10_000 or any(collections):
        gc.collect()
        # The rest is modules and fixtures of the session.
        gc.freeze()


# Without this package, OpenVINO and NNCF do not report each conversion to a server,
# from a copy of the process that takes 3 s of CPU time.
sys.modules["openvino_telemetry"] = None

# Each parallel call of a pipeline costs 0.4 s of CPU time at its start, which is most
# of the time of a test that reads a few batches.
pipeline._PARALLEL_CALLS = pipeline.EVAL_PARALLEL_CALLS = 1


def _asset(relative: str) -> pathlib.Path:
    folder = pathlib.Path(os.environ.get("DEEPLAB_TF_ASSETS", ROOT / "../shared"))
    path = (folder / relative).resolve()
    if not path.exists():
        pytest.skip(f"needs {relative} in DEEPLAB_TF_ASSETS ({folder})")
    return path


@pytest.fixture(scope="session")
def asset():
    """A function that returns the path of a file or folder among the assets."""
    return _asset


@pytest.fixture(params=SPECIAL_FILES)
def special_file(request):
    """The kind of a special file, and a function that creates one at a path."""
    with fail_if_blocked():
        yield request.param, SPECIAL_FILES[request.param]


@pytest.fixture
def precision():
    """A function that sets the dtype policy until the end of the test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.fixture
def eager_execution():
    """Runs steps eagerly, which is quicker than compiling for a few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


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
    """Prefix of the official MobileNetV2 checkpoint for PASCAL VOC."""
    folder = _asset("weights/mobilenet_v2_voc_trainval")
    return str(folder / "model.ckpt")


@pytest.fixture(scope="session")
def official_results() -> pathlib.Path:
    """Metrics and label maps of the official graph on the real PASCAL VOC images."""
    return _asset("golden/voc2012_sample_val_os16.json").parent


@pytest.fixture(scope="session")
def voc_records(voc_root, tmp_path_factory) -> str:
    """TFRecords of the real images."""
    from deeplab_tf.convert import voc2012

    folder = str(tmp_path_factory.mktemp("voc") / "records")
    voc2012.convert(str(voc_root), folder)
    return folder


# Odd and even sides, wide and tall; the first three are the training split.
_TINY_SIZES = ((37, 53), (48, 29), (33, 33), (50, 61), (29, 64))


@pytest.fixture(scope="session")
def beam_environment(tmp_path_factory) -> pathlib.Path:
    """The `bin` of a new environment with the wheel, Apache Beam and Dask."""
    import wheels

    folder = tmp_path_factory.mktemp("beam")
    packages = "dask", "distributed"
    return wheels.make_environment(folder, "beam", *packages) / "bin"


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory) -> pathlib.Path:
    """Five noise images in VOC layout: 3 train, 2 val, 5 trainval."""
    root = tmp_path_factory.mktemp("tiny_voc")
    random = np.random.RandomState(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    stems = [f"2007_{i:06d}" for i in range(len(_TINY_SIZES))]
    for stem, (height, width) in zip(stems, _TINY_SIZES, strict=True):
        noise = random.randint(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        image.save(root / f"JPEGImages/{stem}.jpg", quality=80)
        classes = random.randint(0, 21, (height // 8 + 1, width // 8 + 1))
        label = np.kron(classes, np.ones((8, 8), int))[:height, :width]
        label[0] = 255
        mask = Image.fromarray(label.astype(np.uint8), "P")
        mask.putpalette(np.array(voc_colors(256), np.uint8).tobytes())
        mask.save(root / f"SegmentationClass/{stem}.png")
    for split, part in (("train", stems[:3]), ("val", stems[3:]), ("trainval", stems)):
        path = root / f"ImageSets/Segmentation/{split}.txt"
        path.write_text("".join(f"{stem}\n" for stem in part))
    return root


@pytest.fixture(scope="session")
def tiny_records(tiny_voc, tmp_path_factory) -> str:
    """TFRecords of `tiny_voc`."""
    from deeplab_tf.convert import voc2012

    folder = str(tmp_path_factory.mktemp("tiny_voc_records") / "records")
    voc2012.convert(str(tiny_voc), folder)
    return folder


@pytest.fixture(scope="module")
def shallow():
    """Makes `mobilenet_v2` shallow for tests that work with any network."""
    with shallow_mobilenet_v2():
        yield


@pytest.fixture(scope="session")
def tiny_model():
    """A narrow and shallow DeepLabv3+ whose labels vary over an image."""
    config = ModelConfig.from_official_flags(
        {
            "depth_multiplier": 0.1,
            "num_classes": 5,
            "atrous_rates": [1, 2],
            "aspp_convs_filters": 16,
            "decoder_output_stride": [4],
            "decoder_filters": 16,
        }
    )
    with shallow_mobilenet_v2():
        model = build_model(config)
    shapes = {name: a.shape for name, a in restore.tf1_variables(model).items()}
    # With the weights of many other prefixes, one label covers the image.
    weights = {name: value(f"6/{name}", shape) for name, shape in shapes.items()}
    restore.load_tf1_variables(model, weights)
    return model


@pytest.fixture(scope="session")
def strided_model():
    """A fast model: one 9x9 convolution of stride 8, sensitive to scale, mirroring and
    neighbouring pixels."""
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Rescaling(2.0 / 255.0, -1.0)(image)
    x = keras.layers.Conv2D(4, 9, strides=8, padding="same", name="logits")(x)
    model = keras.Model(image, ResizeLike()(x, image))
    random = np.random.RandomState(1)
    kernel = 0.1 * random.standard_normal((9, 9, 3, 4)).astype(np.float32)
    model.get_layer("logits").set_weights([kernel, np.zeros(4, np.float32)])
    model.model_config = ModelConfig(
        num_classes=4, output_stride=8, decoder=DecoderConfig(output_strides=())
    )
    return model


@pytest.fixture(scope="session")
def color_model():
    """A model that classifies red, green and blue."""
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, keras.layers.Identity(name="logits")(image))
    model.model_config = ModelConfig(
        num_classes=3, output_stride=8, decoder=DecoderConfig(output_strides=())
    )
    return model


@pytest.fixture(scope="session")
def tiny_export(tiny_model, tmp_path_factory) -> str:
    """A SavedModel of `tiny_model`, with CamVid's first five classes."""
    camvid = dataset_info("camvid")
    info = DatasetInfo("toys", camvid.class_names[:5], 255, camvid.colors[:5])
    path = str(tmp_path_factory.mktemp("tiny_export") / "export")
    export_saved_model(tiny_model, path, info=info)
    return path
