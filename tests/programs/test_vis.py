"""vis.py: the official file names, colours and ids of predictions."""

import numpy as np
import pytest
from golden_case import value
from listing import list_outputs
from PIL import Image
from program_runs import assert_refused, run
from record_files import make_record, read_samples, write_shards

from deeplab_tf import ModelConfig, predict_labels, save_tf1_checkpoint
from deeplab_tf.data.info import voc_colors
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.variables import official_variables
from deeplab_tf.serving.saved_model import export_saved_model
from deeplab_tf.serving.signatures import Resizing, ResizingPredictor

VIS = "deeplab_tf.programs.vis"
MODEL = (
    *("--depth_multiplier=0.1", "--atrous_rates=1,2", "--aspp_convs_filters=16"),
    *("--decoder_output_stride=4", "--decoder_filters=16"),
)
CITYSCAPES_EVAL_IDS = [
    *(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
]

pytestmark = pytest.mark.usefixtures("shallow", "eager_execution")


def save_model(num_classes, folder):
    """Saves a checkpoint in which labels vary; returns the model."""
    flags = dict(flag.removeprefix("--").split("=") for flag in MODEL)
    config = ModelConfig.from_official_flags(flags | {"num_classes": num_classes})
    model = build_model(config)
    for name, variable in official_variables(model).items():
        variable.assign(value(f"6/{name}", variable.shape))
    save_tf1_checkpoint(model, f"{folder}/model.ckpt-7")
    return model


@pytest.fixture(scope="module")
def logs(shallow, tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def model(logs):
    return save_model(21, logs)


def visualize(logs, records, folder, *flags):
    """Runs vis.py; returns the folders of coloured and of raw results."""
    paths = (f"--checkpoint_dir={logs}", f"--dataset_dir={records}")
    run(VIS, *paths, f"--vis_logdir={folder}", *flags)
    return folder / "segmentation_results", folder / "raw_segmentation_results"


def read_image(path):
    with Image.open(path) as image:
        return np.array(image)


def test_images_and_colours_have_official_names(model, logs, tiny_records, tmp_path):
    flags = (*MODEL, "--vis_crop_size=65,81", "--vis_split=trainval")
    colored, raw = visualize(logs, tiny_records, tmp_path, *flags)
    # In the order of the records, numbered from 0.
    samples = read_samples(tiny_records, "trainval")
    assert not raw.exists()
    numbers = [f"{i:06d}" for i in range(5)]
    kinds = ("image", "prediction")
    assert list_outputs(colored) == sorted(
        f"{number}_{kind}.png" for number in numbers for kind in kinds
    )
    seen = set()
    for number, sample in zip(numbers, samples, strict=True):
        image = sample.decode()
        np.testing.assert_array_equal(
            read_image(colored / f"{number}_image.png"), image
        )
        labels = predict_labels(model, image, crop_size=(65, 81))
        expected = np.array(voc_colors(21))[labels]
        prediction = read_image(colored / f"{number}_prediction.png")
        np.testing.assert_array_equal(prediction, expected)
        seen |= set(np.unique(labels))
    assert len(seen) > 1


def test_raw_predictions_are_class_ids_by_image_name(
    model, logs, tiny_records, tmp_path
):
    # The two images of the split differ in size, so each is a batch.
    flags = (*MODEL, "--also_save_raw_predictions", "--vis_batch_size=2")
    _, raw = visualize(logs, tiny_records, tmp_path, *flags)
    samples = read_samples(tiny_records, "val")
    assert list_outputs(raw) == sorted(f"{sample.name}.png" for sample in samples)
    for sample in samples:
        labels = predict_labels(model, sample.decode())
        np.testing.assert_array_equal(read_image(raw / f"{sample.name}.png"), labels)


def test_cityscapes_predictions_have_evaluation_ids(shallow, tmp_path):
    model = save_model(19, tmp_path / "logs")
    image = (
        np.random.RandomState(1).randint(0, 256, (5, 7, 3)).repeat(8, 0).repeat(8, 1)
    )
    path = "leftImg8bit/val/ulm/ulm_000000_000019"  # official records hold base names
    record = make_record(image.astype(np.uint8), np.zeros((40, 56), np.uint8), path)
    records = write_shards(tmp_path / "records", record, split="val_fine")
    flags = (*MODEL, "--dataset=cityscapes", "--vis_split=val_fine")
    flags = (*flags, "--colormap_type=cityscapes", "--also_save_raw_predictions")
    colored, raw = visualize(tmp_path / "logs", records, tmp_path, *flags)
    labels = predict_labels(model, image.astype(np.uint8))
    assert len(np.unique(labels)) > 1
    ids = np.array(CITYSCAPES_EVAL_IDS)[labels]
    np.testing.assert_array_equal(read_image(raw / "ulm_000000_000019.png"), ids)
    prediction = read_image(colored / "000000_prediction.png")
    first = labels == labels[0, 0]
    official = {
        0: (128, 64, 128),
        1: (244, 35, 232),
        2: (70, 70, 70),
        8: (107, 142, 35),
    }
    for label in official.keys() & set(np.unique(labels)):
        assert (prediction[labels == label] == official[label]).all()
    assert (prediction[first] == prediction[0, 0]).all()
    assert (prediction[~first] != prediction[0, 0]).any()


def test_resized_images_are_labelled_at_their_original_size(
    model, logs, tiny_records, tmp_path
):
    flags = (*MODEL, "--min_resize_value=33", "--max_resize_value=49")
    flags = (*flags, "--resize_factor=16", "--also_save_raw_predictions")
    _, raw = visualize(logs, tiny_records, tmp_path, *flags)
    predictor = ResizingPredictor(Predictor(model), Resizing(33, 49, 16))
    for sample in read_samples(tiny_records, "val"):
        (labels,) = np.array(predictor.labels(np.float32(sample.decode())[None]))
        np.testing.assert_array_equal(read_image(raw / f"{sample.name}.png"), labels)


def test_exports_are_drawn_like_checkpoints(model, logs, tiny_records, tmp_path):
    export_saved_model(model, str(tmp_path / "export"))
    colored, _ = visualize(logs, tiny_records, tmp_path / "a", *MODEL)
    same, _ = visualize(tmp_path / "export", tiny_records, tmp_path / "b")
    assert list_outputs(colored) == list_outputs(same)
    for name in list_outputs(colored):
        np.testing.assert_array_equal(
            read_image(colored / name), read_image(same / name)
        )
    message = "--vis_crop_size has no effect on .*export, an exported model"
    paths = (f"--checkpoint_dir={tmp_path}/export", f"--dataset_dir={tiny_records}")
    flags = (f"--vis_logdir={tmp_path}/c", "--vis_crop_size=65,65")
    assert_refused(message, VIS, *paths, *flags)


def test_other_files_are_not_replaced(model, logs, tiny_records, tmp_path):
    colored, _ = visualize(logs, tiny_records, tmp_path, *MODEL)
    # A second run replaces the files of the first.
    visualize(logs, tiny_records, tmp_path, *MODEL)
    (colored / "000000_image.png").write_bytes(b"mine")
    paths = (f"--checkpoint_dir={logs}", f"--dataset_dir={tiny_records}")
    flags = (*MODEL, f"--vis_logdir={tmp_path}")
    assert_refused("000000_image.png exists but was not", VIS, *paths, *flags)
    assert (colored / "000000_image.png").read_bytes() == b"mine"
    run(VIS, *paths, *flags, "--overwrite")
    assert (colored / "000000_image.png").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--colormap_type=pascall", "similar: pascal; it must be pascal or cityscapes"),
        ("--vis_crop_size=65", "--vis_crop_size cannot be .*65"),
        ("--eval_crop_size=65,65", "no flag --eval_crop_size"),
        ("--vis_split=tset", "tset"),
    ],
)
def test_invalid_flags_are_refused(model, logs, tiny_records, tmp_path, flag, message):
    paths = (f"--checkpoint_dir={logs}", f"--dataset_dir={tiny_records}")
    assert_refused(message, VIS, *paths, *MODEL, f"--vis_logdir={tmp_path}/v", flag)
