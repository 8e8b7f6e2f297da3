"""Frames of videos and cameras, and frames back to a video file."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, outputs

# What OpenCV's wheels can encode and every player reads; H.264 they cannot encode.
_CODEC = "mp4v"
# Of cameras and files that tell no rate, or one of a clock instead of one of frames.
_USUAL_RATE, _HIGHEST_RATE = 30.0, 1000.0  # frames per second


class Video:
    """An open video or camera.

    Iterating gives its frames once: uint8 RGB `[height, width, 3]`, all of one size,
    turned upright as the file says.

    Attributes:
        name: Name of the file without its suffix, or of the camera.
        is_camera: Whether it goes on until nobody looks.
        rate: Frames per second.
        count: Frames as the file tells, often estimated; None where it does not.
        size: Height and width of the frames.
    """

    def __init__(self, capture: cv2.VideoCapture, source: str):
        self.is_camera = _is_camera(source)
        stem = os.path.splitext(os.path.basename(source))[0]
        self.name = f"camera{source}" if self.is_camera else stem
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 else None
        self._capture = capture
        # At once, because many broken files open well.
        self._first = self._next()
        if self._first is None:
            raise UserError(f"{_described(source)} gives no frame")
        self.size = self._first.shape[:2]

    def _next(self) -> np.ndarray | None:
        is_there, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if is_there else None

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, self._first = self._first, None
        while frame is not None:
            yield frame
            frame = self._next()


def _is_camera(source: str) -> bool:
    return source.isdecimal()


def _described(source: str) -> str:
    return f"camera {source}" if _is_camera(source) else source


@contextlib.contextmanager
def read_video(source: str) -> Iterator[Video]:
    """Opens a video as long as it is entered.

    Args:
        source: Path of a file, or the number of a camera.

    Raises:
        UserError: if there is no such file or camera, or it gives no frame.
    """
    with contextlib.ExitStack() as stack:
        _silence()
        if _is_camera(source):
            capture = cv2.VideoCapture(int(source))
        else:
            # Other readers than this one would take a name with a number in it for
            # one of many pictures.
            local = stack.enter_context(_local_copy(source))
            capture = cv2.VideoCapture(local, cv2.CAP_FFMPEG)
        stack.callback(capture.release)
        if not capture.isOpened():
            wrong = "is not there" if _is_camera(source) else "is no video, or broken"
            raise UserError(f"{_described(source)} {wrong}")
        yield Video(capture, source)


@contextlib.contextmanager
def write_video(
    path: str, rate: float, size: tuple[int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that writes a frame, uint8 RGB `[height, width, 3]`, to an MP4.

    The file is published when the block ends; if it ends with an error, with the frames
    up to there. The last row or column of odd frames is written twice, because the
    codec takes even sides only.

    Args:
        path: Path of the file; our own earlier output there is replaced.
        rate: Frames per second.
        size: Height and width of the frames.

    Raises:
        UserError: if the file cannot be written.
    """
    _silence()
    odd = [(0, side % 2) for side in size]
    height, width = (side + side % 2 for side in size)
    failure = None
    with outputs.publish(path) as local:
        codec = cv2.VideoWriter_fourcc(*_CODEC)
        writer = cv2.VideoWriter(local, cv2.CAP_FFMPEG, codec, rate, (width, height))
        if not writer.isOpened():
            raise UserError(f"{path} cannot be written as a video")

        def write(frame: np.ndarray) -> None:
            even = np.pad(frame, (*odd, (0, 0)), mode="edge")
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

        try:
            yield write
        except Exception as error:  # after which the frames so far are published
            failure = error
        finally:
            writer.release()
        # The writer does not tell of a full disk, but an MP4 ends in its contents.
        if not cv2.VideoCapture(local, cv2.CAP_FFMPEG).isOpened():
            raise UserError(f"{path} could not be written; is the disk full?")
    if failure is not None:
        raise failure


def _silence() -> None:
    """Keeps OpenCV from saying on stderr what a `UserError` says."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextlib.contextmanager
def _local_copy(path: str) -> Iterator[str]:
    """Yields the path of a file for OpenCV, which knows local files only."""
    file_kinds.require_file(path)
    if not file_kinds.is_remote(path):
        # FFmpeg would take "concat:a.mp4" for a protocol.
        yield os.path.abspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        tf.io.gfile.copy(path, local)
        yield local
