"""predict.py on videos and cameras."""

import os
import signal
import subprocess
import sys

import cv2
import moving_shapes
import numpy as np
import pytest
from conftest import ROOT
from listing import list_outputs
from PIL import Image
from program_runs import assert_refused, run

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.serving.saved_model import export_saved_model, read_export_info

PREDICT = "deeplab_tf.programs.predict"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return moving_shapes.write(tmp_path_factory.mktemp("clip") / "moving.avi")


@pytest.fixture(scope="module")
def strided_export(strided_model, tmp_path_factory):
    """A fast SavedModel with CamVid's first four classes."""
    path = str(tmp_path_factory.mktemp("strided_export") / "export")
    camvid = dataset_info("camvid")
    info = DatasetInfo("toys", camvid.class_names[:4], 255, camvid.colors[:4])
    export_saved_model(strided_model, path, info=info)
    return path


@pytest.fixture(scope="module")
def color_export(color_model, tmp_path_factory):
    """A fast SavedModel that classifies red, green and blue."""
    path = str(tmp_path_factory.mktemp("color_export") / "export")
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    info = DatasetInfo("paints", ("red", "background", "blue"), 255, colors)
    export_saved_model(color_model, path, info=info)
    return path


def read_label_maps(folder):
    maps = []
    for name in list_outputs(folder):
        with Image.open(folder / name) as image:
            assert image.mode == "P"
            maps.append(np.array(image))
    return maps


@pytest.fixture(scope="module")
def outputs(clip, strided_export, tmp_path_factory):
    """A folder with outputs for batch sizes 1, 4 and 7, and the last printed text."""
    folder = tmp_path_factory.mktemp("outputs")
    for size in (1, 4, 7):
        printed = run(
            *(PREDICT, f"--model={strided_export}", f"--video={clip}", "--save_frames"),
            *(f"--output_dir={folder}/{size}", f"--batch_size={size}"),
        )
    return folder, printed


def test_frames_are_labelled_like_images(outputs, clip, strided_model):
    folder, printed = outputs
    frames = moving_shapes.frames(clip)
    maps = read_label_maps(folder / "1/moving_labels")
    assert len(frames) == len(maps) == 30
    for frame, labels in zip(frames, maps, strict=True):
        expected = predict_labels(strided_model, frame[None])[0]
        np.testing.assert_array_equal(labels, expected)
    assert not np.array_equal(maps[0], maps[29])
    assert len(np.unique(maps)) > 2
    assert "30 frames labelled" in printed
    assert list_outputs(folder / "1") == ["moving_labels", "moving_overlay.mp4"]


@pytest.mark.parametrize("size", [4, 7])
def test_output_does_not_depend_on_batch_size(outputs, size):
    folder, _ = outputs
    one, many = (read_label_maps(folder / f"{n}/moving_labels") for n in (1, size))
    np.testing.assert_array_equal(one, many)
    one, many = (
        moving_shapes.frames(folder / f"{n}/moving_overlay.mp4") for n in (1, size)
    )
    np.testing.assert_array_equal(one, many)


def test_overlay_video_shows_the_labels(outputs, clip, strided_export):
    folder, _ = outputs
    info = read_export_info(strided_export)
    shown = moving_shapes.frames(folder / "1/moving_overlay.mp4")
    maps = read_label_maps(folder / "1/moving_labels")
    assert len(shown) == 30
    # A legend of four rows would be higher than half of 121 pixels.
    assert shown[0].shape == (122, 162, 3)
    frames = moving_shapes.frames(clip)
    for image, frame, labels in zip(shown, frames, maps, strict=True):
        expected = visualize.overlay(frame, labels, info).astype(int)
        assert np.abs(image[:121, :161] - expected).mean() < 6


def test_legend_is_drawn_below_the_video(color_export, tmp_path, capfd):
    moving_shapes.write(tmp_path / "wide.avi", count=4, height=200, width=301)
    run(
        *(PREDICT, f"--model={color_export}", f"--video={tmp_path}/wide.avi"),
        *(f"--output_dir={tmp_path}/out", "--max_frames=3"),
    )
    shown = np.array(moving_shapes.frames(tmp_path / "out/wide_overlay.mp4"), int)
    # No warning about the fourth frame.
    assert "warning" not in capfd.readouterr().err
    # One row of 19 pixels and a margin of 6, made even.
    assert shown.shape == (3, 226, 302, 3)
    legends = shown[:, 202:]
    assert np.abs(legends - legends[0]).max() < 40
    boxes = [np.abs(legends[0] - color).sum(-1).min() for color in np.eye(3) * 255]
    assert boxes[0] < 120 and boxes[2] < 120
    # The background is not coloured, so it is not listed.
    assert boxes[1] > 200


def test_truncated_video_is_labelled_up_to_its_end(color_export, tmp_path, capfd):
    path = moving_shapes.write(tmp_path / "cut.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    count = len(moving_shapes.frames(path))
    assert 0 < count < 30
    capfd.readouterr()
    run(
        *(PREDICT, f"--model={color_export}", f"--video={path}"),
        f"--output_dir={tmp_path}/out",
    )
    assert len(moving_shapes.frames(tmp_path / "out/cut_overlay.mp4")) == count
    assert f"cut.avi ended after {count} of 30 frames" in capfd.readouterr().err


def test_invalid_flags_are_refused_before_writing(color_export, clip, tmp_path):
    model, out = f"--model={color_export}", f"--output_dir={tmp_path}/out"
    video, images = f"--video={clip}", f"--images={clip.parent}"
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    for message, *arguments in (
        ("give --images or --video; received both", video, images, out),
        ("give --images or --video; received neither", out),
        ("camera 97 was not found", "--video=97", out),
        ("broken.mp4 is not a video or is broken", f"--video={broken}", out),
        ("x.mp4 does not exist", f"--video={tmp_path}/x.mp4", out),
        ("--output_dir is required", video),
        ("--image_list has no effect without --images", video, out, "--image_list=x"),
        ("--max_frames has no effect without --video", images, out, "--max_frames=3"),
        ("--save_frames has no effect without --video", images, out, "--save_frames"),
        ("--submission has no .* --images", video, out, "--submission=cityscapes"),
        ("flag --batch_size=0", video, out, "--batch_size=0"),
    ):
        assert_refused(f"predict.py: .*{message}", PREDICT, model, *arguments)
        assert os.listdir(tmp_path) == ["broken.mp4"]


class Camera:
    """A fake camera that plays a clip and sends Ctrl-C at frame 20.

    Not a subclass: the garbage collector fails on subclasses of OpenCV's classes.
    """

    def __init__(self, capture):
        self.capture = capture
        self.reads = 0

    def read(self):
        self.reads += 1
        if self.reads == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return self.capture.read()

    def __getattr__(self, name):
        return getattr(self.capture, name)


@pytest.fixture
def camera(monkeypatch, clip):
    """Installs the fake camera as camera 0."""
    opened = cv2.VideoCapture

    def open_camera(*source):
        return Camera(opened(str(clip))) if source == (0,) else opened(*source)

    monkeypatch.setattr(cv2, "VideoCapture", open_camera)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_camera_stops_after_max_frames_or_ctrl_c(
    camera, color_export, tmp_path, batch_size
):
    command = (
        *(PREDICT, f"--model={color_export}", "--video=0"),
        f"--batch_size={batch_size}",
    )
    run(*command, f"--output_dir={tmp_path}/five", "--max_frames=5")
    printed = run(*command, f"--output_dir={tmp_path}/endless")
    assert list_outputs(tmp_path / "five") == ["camera0_overlay.mp4"]
    assert len(moving_shapes.frames(tmp_path / "five/camera0_overlay.mp4")) == 5
    # The frames read before the signal, and possibly the one read with it.
    count = len(moving_shapes.frames(tmp_path / "endless/camera0_overlay.mp4"))
    assert count in (19, 20)
    assert f"{count} frames labelled" in printed


@pytest.mark.slow
def test_sigterm_closes_the_video(color_export, tmp_path):
    clip = moving_shapes.write(tmp_path / "long.avi", count=6000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "deeplab_tf.predict", f"--video={clip}"),
            *(f"--model={color_export}", f"--output_dir={tmp_path}/out"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TQDM_MININTERVAL": "0"},
    )
    errors = b""
    # Without a terminal, it prints lines: "predicting: 60/6000 frame, ...".
    while b"/6000 frame" not in errors.replace(b" 0/6000 frame", b""):
        piece = process.stderr.read1()
        assert piece, errors
        errors += piece
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert b"Traceback" not in errors
    count = len(moving_shapes.frames(tmp_path / "out/long_overlay.mp4"))
    assert 0 < count < 6000
    assert f"{count} frames labelled" in printed.decode()
