"""Reads and writes the frames of videos."""

import resource
import struct

import cv2
import moving_shapes
import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs

from deeplab_tf.errors import UserError
from deeplab_tf.images.videos import read_video, write_video

# A quarter turn clockwise as phones store it: a matrix of 16.16 and 2.30 numbers.
QUARTER_TURN = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)


def write_mp4(path, count=10, height=120, width=160, rate=12.5):
    with write_video(str(path), rate, (height, width)) as write:
        for i in range(count):
            write(moving_shapes.frame(i, height, width))
    return path


def test_frames_are_rgb_and_have_the_video_size(tmp_path):
    path = moving_shapes.write(tmp_path / "moving.shapes.avi")
    with read_video(str(path)) as video:
        assert (video.name, video.is_camera) == ("moving.shapes", False)
        assert (video.rate, video.count, video.size) == (12.0, 30, (121, 161))
        frames = list(video)
    assert len(frames) == 30
    np.testing.assert_array_equal(frames, moving_shapes.frames(path))
    for i in (0, 29):
        assert frames[i].dtype == np.uint8 and frames[i].flags.c_contiguous
        # JPEG changes colours a little; swapping red and blue changes them by 190.
        assert np.abs(frames[i] - moving_shapes.frame(i).astype(int)).mean() < 8


def test_video_is_rotated_upright(tmp_path):
    path = write_mp4(tmp_path / "lying.mp4")
    content = bytearray(path.read_bytes())
    # tkhd: the matrix follows 40 bytes of version, times, ids, duration and layers.
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + len(QUARTER_TURN)] = QUARTER_TURN
    rotated = tmp_path / "turned.mp4"
    rotated.write_bytes(content)
    with read_video(str(path)) as stored, read_video(str(rotated)) as upright:
        assert stored.size == (120, 160) and upright.size == (160, 120)
        for before, after in zip(stored, upright, strict=True):
            np.testing.assert_array_equal(after, np.rot90(before, -1))


def test_mjpeg_stream_has_no_frame_count(tmp_path):
    path = tmp_path / "stream.mjpeg"
    jpegs = [cv2.imencode(".jpg", moving_shapes.frame(i))[1] for i in range(5)]
    path.write_bytes(b"".join(jpeg.tobytes() for jpeg in jpegs))
    with read_video(str(path)) as video:
        assert video.count is None
        assert len(list(video)) == 5


def test_clock_rate_is_not_used_as_frame_rate(tmp_path):
    path = tmp_path / "clock.avi"
    moving_shapes.write(path, count=2)
    content = path.read_bytes()
    # strh: the rate is 20 bytes after the codec, and its scale is 1.
    start = content.index(b"vidsMJPG") + 24
    assert content[start : start + 4] == struct.pack("<I", 12)
    path.write_bytes(content[:start] + struct.pack("<I", 90000) + content[start + 4 :])
    with read_video(str(path)) as video:
        assert video.rate == 30.0


def make_empty(path):
    path.touch()


def make_text(path):
    path.write_text("no video at all")


def truncate_video(path):
    write_mp4(path)
    path.write_bytes(path.read_bytes()[:-500])


def remove_frames(path):
    content = moving_shapes.write(path.with_suffix(".avi")).read_bytes()
    start = content.index(b"movi") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_empty, "{} is not a video or is broken"),
        (make_text, "{} is not a video or is broken"),
        (truncate_video, "{} is not a video or is broken"),
        (
            remove_frames,
            "could not read a frame from {}; check that the file plays and that no "
            "other program uses the camera",
        ),
        (folder, "{} is a directory; a file is needed"),
        (lambda path: None, "{} does not exist"),
    ],
)
def test_invalid_video_gives_one_line_error(tmp_path, capfd, make, message):
    path = tmp_path / "clip1.mp4"
    make(path)
    with pytest.raises(UserError) as error, read_video(str(path)):
        pass
    assert str(error.value) == message.format(path)
    assert capfd.readouterr().err == ""


def test_missing_camera_gives_one_line_error(capfd):
    with pytest.raises(UserError, match=r"^camera 97 was not found$"), read_video("97"):
        pass
    assert capfd.readouterr().err == ""


def test_unknown_url_scheme_is_refused():
    with pytest.raises(UserError, match=r"^rtsp://host/1 cannot be read: .*rtsp"):
        read_video("rtsp://host/1").__enter__()


@pytest.mark.parametrize("size", [(121, 161), (120, 161), (121, 160), (120, 160)])
def test_written_video_has_all_frames_and_even_sides(tmp_path, size):
    path = write_mp4(tmp_path / "out.mp4", 7, *size, rate=29.97)
    frames = np.array(moving_shapes.frames(path), int)
    assert frames.shape == (7, 122 if size[0] % 2 else 120, 2 * -(-size[1] // 2), 3)
    for i, frame in enumerate(frames):
        expected = moving_shapes.frame(i, *size)
        assert np.abs(frame[: size[0], : size[1]] - expected).mean() < 8
        # The last column and row are repeated, not black.
        assert np.abs(frame[:, -1] - frame[:, -2]).mean() < 8
        assert np.abs(frame[-1] - frame[-2]).mean() < 8
    with read_video(str(path)) as video:
        assert video.rate == pytest.approx(29.97)


def test_error_leaves_a_playable_video(tmp_path):
    path = tmp_path / "out.mp4"
    with pytest.raises(KeyError), write_video(str(path), 10, (120, 160)) as write:
        for i in range(4):
            write(moving_shapes.frame(i, 120, 160))
        raise KeyError
    assert len(moving_shapes.frames(path)) == 4


def test_videos_on_remote_file_systems_are_read_and_written():
    folder = "ram://videos"
    tf.io.gfile.makedirs(folder)
    write_mp4(f"{folder}/out.mp4")
    assert list_outputs(folder) == ["out.mp4"]
    with read_video(f"{folder}/out.mp4") as video:
        assert video.name == "out"
        assert len(list(video)) == 10
    with pytest.raises(UserError, match=r"^ram://videos/x\.mp4 does not exist$"):
        read_video(f"{folder}/x.mp4").__enter__()


def test_invalid_video_size_is_refused(tmp_path, capfd):
    path = f"{tmp_path}/out.mp4"
    with pytest.raises(
        UserError, match=f"^{path} cannot be written: this build of OpenCV"
    ):
        write_video(path, 10, (0, 0)).__enter__()
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_full_disk_is_reported(tmp_path):
    path = tmp_path / "out.mp4"
    random = np.random.RandomState(3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Limit the size of files of this process; Python ignores the signal.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with (
            pytest.raises(UserError, match=r"could not be written; is the disk"),
            write_video(str(path), 10, (240, 320)) as write,
        ):
            for _ in range(30):
                write(random.randint(0, 256, (240, 320, 3)).astype(np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists()
