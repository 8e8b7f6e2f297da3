"""The qualitative comparison of decoders: training and drawing."""

import numpy as np
import pytest
from PIL import Image
from program_runs import run

from benchmarks import qualitative
from deeplab_tf import visualize
from deeplab_tf.config import Experiment
from deeplab_tf.data.info import generic_info
from deeplab_tf.training import resume


def test_sheet_has_a_row_per_scene(strided_model):
    info = generic_info(strided_model.model_config.num_classes)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    truth = np.zeros((32, 48, 1), np.uint8)
    truth[0] = info.ignore_label
    scenes = [(image, truth), (image[::-1], truth)]
    drawing = qualitative.draw_sheet(
        scenes, {"decoder": strided_model, "bilinear": strided_model}, info
    )
    height, width = (48 + 8) * 2, (72 + 8) * 6
    assert drawing.shape[1] == width and height < drawing.shape[0] < height + 30
    rows = drawing[-height:].reshape(2, 56, 6, 80, 3).swapaxes(1, 2)[:, :, 4:52, 4:76]
    np.testing.assert_array_equal(rows[0, 2:4], rows[0, 4:6])  # both models
    assert (rows[0, 0] != rows[1, 0]).any()
    # Ignored pixels are never errors.
    first = truth[:1, :, 0]
    ignored = visualize.error_map(first, np.zeros_like(first), info)
    assert len(np.unique(ignored[0], axis=0)) == 2  # stripes
    shown = np.unique(rows[0, 3][0].reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(shown, np.unique(ignored[0], axis=0))


@pytest.mark.slow
def test_both_models_are_trained_and_drawn(tmp_path):
    small = ("--steps=1", "--train_images=8", "--val_images=3", "--rows=2")
    out = run("benchmarks.qualitative", f"--output_dir={tmp_path}", *small)
    for name, strides in (("decoder", (4,)), ("bilinear", ())):
        assert f"{name:8s} mIoU " in out
        experiment: Experiment = resume.read_experiment(str(tmp_path / name))
        assert experiment.model.decoder_output_strides == strides
    with Image.open(tmp_path / qualitative.SHEET) as sheet:
        assert sheet.size == ((192 + 8) * 6, (192 + 8) * 2 + 20)
    assert "resuming" not in out
    again = run("benchmarks.qualitative", f"--output_dir={tmp_path}", *small)
    assert "training" not in again
