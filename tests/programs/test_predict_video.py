"""Videos labelled from end to end."""

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
from deeplab_tf.inference import predict_labels
from deeplab_tf.serving.saved_model import export_saved_model, read_export_info

PREDICT = "deeplab_tf.programs.predict"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return moving_shapes.write(tmp_path_factory.mktemp("clip") / "moving.avi")


@pytest.fixture(scope="module")
def strided_export(strided_model, tmp_path_factory):
    """A quick SavedModel whose labels vary, with CamVid's first four classes."""
    path = str(tmp_path_factory.mktemp("strided_export") / "export")
    camvid = dataset_info("camvid")
    info = DatasetInfo("toys", camvid.class_names[:4], 255, camvid.colors[:4])
    export_saved_model(strided_model, path, info=info)
    return path


@pytest.fixture(scope="module")
def color_export(color_model, tmp_path_factory):
    """A quick SavedModel that is right about red, green and blue."""
    path = str(tmp_path_factory.mktemp("color_export") / "export")
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    info = DatasetInfo("paints", ("red", "background", "blue"), 255, colors)
    export_saved_model(color_model, path, info=info)
    return path


def label_maps(folder):
    maps = []
    for name in list_outputs(folder):
        with Image.open(folder / name) as picture:
            assert picture.mode == "P"
            maps.append(np.array(picture))
    return maps


@pytest.fixture(scope="module")
def labelled(clip, strided_export, tmp_path_factory):
    """What the program writes in batches of 1, 4 and 7, and prints in the last."""
    folder = tmp_path_factory.mktemp("labelled")
    for size in (1, 4, 7):
        printed = run(
            *(PREDICT, f"--model={strided_export}", f"--video={clip}", "--save_frames"),
            *(f"--output_dir={folder}/{size}", f"--batch_size={size}"),
        )
    return folder, printed


def test_every_frame_has_the_labels_of_its_picture(labelled, clip, strided_model):
    folder, printed = labelled
    frames = moving_shapes.frames(clip)
    maps = label_maps(folder / "1/moving_labels")
    assert len(frames) == len(maps) == 30
    for frame, labels in zip(frames, maps, strict=True):
        expected = predict_labels(strided_model, frame[None])[0]
        np.testing.assert_array_equal(labels, expected)
    assert not np.array_equal(maps[0], maps[29])
    assert len(np.unique(maps)) > 2
    assert "30 frames labelled" in printed
    assert list_outputs(folder / "1") == ["moving_labels", "moving_overlay.mp4"]


@pytest.mark.parametrize("size", [4, 7])
def test_the_batch_size_changes_nothing(labelled, size):
    folder, _ = labelled
    one, many = (label_maps(folder / f"{n}/moving_labels") for n in (1, size))
    np.testing.assert_array_equal(one, many)
    one, many = (
        moving_shapes.frames(folder / f"{n}/moving_overlay.mp4") for n in (1, size)
    )
    np.testing.assert_array_equal(one, many)


def test_the_overlay_video_shows_the_labels(labelled, clip, strided_export):
    folder, _ = labelled
    info = read_export_info(strided_export)
    shown = moving_shapes.frames(folder / "1/moving_overlay.mp4")
    maps = label_maps(folder / "1/moving_labels")
    assert len(shown) == 30
    # Four classes below each other would be higher than half of 121 pixels.
    assert shown[0].shape == (122, 162, 3)
    frames = moving_shapes.frames(clip)
    for picture, frame, labels in zip(shown, frames, maps, strict=True):
        expected = visualize.overlay(frame, labels, info).astype(int)
        assert np.abs(picture[:121, :161] - expected).mean() < 6


def test_a_legend_stays_below_the_video(color_export, tmp_path, capfd):
    moving_shapes.write(tmp_path / "wide.avi", count=4, height=200, width=301)
    run(
        *(PREDICT, f"--model={color_export}", f"--video={tmp_path}/wide.avi"),
        *(f"--output_dir={tmp_path}/out", "--max_frames=3"),
    )
    shown = np.array(moving_shapes.frames(tmp_path / "out/wide_overlay.mp4"), int)
    # That the video has a fourth frame is no surprise.
    assert "warning" not in capfd.readouterr().err
    # One row of 19 pixels and a margin of 6, made even.
    assert shown.shape == (3, 226, 302, 3)
    legends = shown[:, 202:]
    assert np.abs(legends - legends[0]).max() < 40
    boxes = [np.abs(legends[0] - color).sum(-1).min() for color in np.eye(3) * 255]
    assert boxes[0] < 120 and boxes[2] < 120
    # What stays clear needs no colour.
    assert boxes[1] > 200


def test_a_video_cut_off_is_labelled_as_far_as_it_goes(color_export, tmp_path, capfd):
    path = moving_shapes.write(tmp_path / "cut.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    there = len(moving_shapes.frames(path))
    assert 0 < there < 30
    capfd.readouterr()
    run(
        *(PREDICT, f"--model={color_export}", f"--video={path}"),
        f"--output_dir={tmp_path}/out",
    )
    assert len(moving_shapes.frames(tmp_path / "out/cut_overlay.mp4")) == there
    assert f"cut.avi ended after {there} of 30 frames" in capfd.readouterr().err


def test_mistakes_end_the_program_before_it_writes(color_export, clip, tmp_path):
    model, out = f"--model={color_export}", f"--output_dir={tmp_path}/out"
    video, images = f"--video={clip}", f"--images={clip.parent}"
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    for message, *arguments in (
        ("give --images or --video; received both", video, images, out),
        ("give --images or --video; received neither", out),
        ("camera 97 not found", "--video=97", out),
        ("broken.mp4 is not a video, or broken", f"--video={broken}", out),
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
    """A clip in a camera's place, for machines that have none; Ctrl-C at picture 20.

    No subclass: the garbage collector stumbles over those of OpenCV's classes.
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
    """Plugs it in as camera 0."""
    opened = cv2.VideoCapture

    def open_camera(*source):
        return Camera(opened(str(clip))) if source == (0,) else opened(*source)

    monkeypatch.setattr(cv2, "VideoCapture", open_camera)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_camera_ends_with_its_frames_or_ctrl_c(
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
    # Those that were read before the signal, and maybe the one read with it.
    count = len(moving_shapes.frames(tmp_path / "endless/camera0_overlay.mp4"))
    assert count in (19, 20)
    assert f"{count} frames labelled" in printed


@pytest.mark.slow
def test_a_signal_closes_the_video(color_export, tmp_path):
    clip = moving_shapes.write(tmp_path / "long.avi", count=6000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "deeplab_tf.predict", f"--video={clip}"),
            *(f"--model={color_export}", f"--output_dir={tmp_path}/out"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    told = b""
    # tqdm rewrites its one line: "1%| | 60/6000 [...".
    while b"/6000 [" not in told.replace(b" 0/6000 [", b""):
        piece = process.stderr.read1()
        assert piece, told
        told += piece
    process.send_signal(signal.SIGTERM)
    printed, told = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, told
    assert b"Traceback" not in told
    count = len(moving_shapes.frames(tmp_path / "out/long_overlay.mp4"))
    assert 0 < count < 6000
    assert f"{count} frames labelled" in printed.decode()
