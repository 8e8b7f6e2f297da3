"""predict.py --submission: archives for the servers of benchmarks."""

import os
import tarfile

import keras
import numpy as np
import pytest
from listing import list_outputs
from PIL import Image
from program_runs import assert_refused, run

from deeplab_tf.config import DecoderConfig, ModelConfig
from deeplab_tf.data.info import dataset_info, generic_info
from deeplab_tf.images.inputs import read_image
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.serving.saved_model import export_saved_model

PREDICT = "deeplab_tf.programs.predict"
LISTED = ("2007_000000", "2007_000003")


@pytest.fixture(scope="module")
def voc_model():
    """A one-layer model with the 21 classes of VOC."""
    image = keras.Input((None, None, 3), name="image")
    layer = keras.layers.Dense(21, name="logits")
    model = keras.Model(image, layer(image))
    random = np.random.RandomState(1)
    layer.set_weights([random.standard_normal((3, 21)), 99 * random.rand(21)])
    model.model_config = ModelConfig(
        num_classes=21, output_stride=8, decoder=DecoderConfig(output_strides=())
    )
    return model


@pytest.fixture(scope="module")
def voc_export(voc_model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("voc_export") / "export")
    export_saved_model(voc_model, path, info=dataset_info("pascal_voc_seg"))
    return path


@pytest.fixture
def arguments(voc_export, tiny_voc, tmp_path):
    """A command line that packs two of five images."""
    (tmp_path / "test.txt").write_text("".join(f"{name}\n" for name in LISTED))
    return [
        *(PREDICT, f"--model={voc_export}", f"--images={tiny_voc}/JPEGImages"),
        *(f"--image_list={tmp_path}/test.txt", "--submission=pascal_voc_seg"),
        f"--submission_file={tmp_path}/results.tgz",
    ]


def test_listed_images_are_packed(arguments, voc_model, tiny_voc, tmp_path):
    printed = run(*arguments)
    assert "2 images labelled" in printed
    assert list_outputs(tmp_path) == ["results.tgz", "test.txt"]
    with tarfile.open(tmp_path / "results.tgz") as archive:
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert archive.getnames() == [f"{folder}/{name}.png" for name in LISTED]
        for name in LISTED:
            with Image.open(archive.extractfile(f"{folder}/{name}.png")) as output:
                labels = np.array(output)
            image = read_image(f"{tiny_voc}/JPEGImages/{name}.jpg")
            expected = predict_labels(voc_model, image[None])[0]
            np.testing.assert_array_equal(labels, expected)
            assert len(np.unique(labels)) > 1


def test_output_dir_is_written_as_well(arguments, tmp_path):
    run(*arguments, f"--output_dir={tmp_path}/out")
    kinds = ("color", "label", "overlay")
    images = [f"{name}_{kind}.png" for name in LISTED for kind in kinds]
    assert list_outputs(tmp_path / "out") == [*images, "overview.png"]
    assert (tmp_path / "results.tgz").exists()


@pytest.fixture(scope="module")
def four_class_export(strided_model, tmp_path_factory):
    """A SavedModel with four classes."""
    path = str(tmp_path_factory.mktemp("four_class_export") / "export")
    export_saved_model(strided_model, path, info=generic_info(4))
    return path


def test_invalid_flags_leave_no_archive(arguments, four_class_export, tmp_path):
    for message, *flags in (
        ("needs its 21 classes; .* has 4", f"--model={four_class_export}"),
        ("--submission_file is empty", "--submission_file="),
        ("results.txt must end with", f"--submission_file={tmp_path}/results.txt"),
        ("it must be cityscapes or pascal_voc_seg", "--submission=camvid"),
    ):
        assert_refused(f"predict.py: .*{message}", *arguments, *flags)
        assert os.listdir(tmp_path) == ["test.txt"]
    arguments.remove("--submission=pascal_voc_seg")
    assert_refused("--submission_file has no effect without --submission", *arguments)


def test_broken_image_leaves_no_archive(voc_export, tiny_voc, tmp_path):
    for name in LISTED:
        photo = (tiny_voc / f"JPEGImages/{name}.jpg").read_bytes()
        broken = photo if name == LISTED[0] else photo[:-200]
        (tmp_path / f"{name}.jpg").write_bytes(broken)
    before = sorted(os.listdir(tmp_path))
    assert_refused(
        f"{LISTED[1]}.jpg is broken",
        *(PREDICT, f"--model={voc_export}", f"--images={tmp_path}"),
        *("--submission=pascal_voc_seg", f"--submission_file={tmp_path}/results.tgz"),
    )
    assert sorted(os.listdir(tmp_path)) == before
