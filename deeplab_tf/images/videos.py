"""Reads frames from videos and cameras, and writes videos."""

import contextlib
import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, outputs

# All players can decode it and, unlike H.264, OpenCV's wheels can encode it.
_CODEC = "mp4v"
# Frames per second. Some cameras and files report no rate, or that of a clock.
_DEFAULT_RATE, _HIGHEST_RATE = 30.0, 1000.0


class Video:
    """An open video or camera.

    Iterating, which is possible once, yields upright uint8 RGB frames `[height, width,
    3]` of one size. `rate` is in frames per second; `count` is the number of frames
    according to the header, often an estimate, or None; `size` is height and width.
    """

    def __init__(self, capture: cv2.VideoCapture, source: str):
        self.is_camera = _is_camera(source)
        stem = os.path.splitext(os.path.basename(source))[0]
        self.name = f"camera{source}" if self.is_camera else stem
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= _HIGHEST_RATE else _DEFAULT_RATE
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 else None
        self._capture = capture
        # Many broken files open without an error.
        self._first = self._read_frame()
        if self._first is None:
            raise UserError(
                f"could not read a frame from {_describe(source)}; check that the file "
                "plays and that no other program uses the camera"
            )
        self.size = self._first.shape[:2]

    def _read_frame(self) -> np.ndarray | None:
        is_read, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if is_read else None

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, self._first = self._first, None
        while frame is not None:
            yield frame
            frame = self._read_frame()


def _is_camera(source: str) -> bool:
    return source.isdecimal()


def _describe(source: str) -> str:
    return f"camera {source}" if _is_camera(source) else source


@contextlib.contextmanager
def read_video(source: str) -> Iterator[Video]:
    """Opens a video file, or a camera by its number, for the duration of the context.

    Raises:
        UserError: if there is no such file or camera, or no frame can be read.
    """
    with contextlib.ExitStack() as stack:
        _silence_opencv()
        if _is_camera(source):
            capture = cv2.VideoCapture(int(source))
        else:
            # Other readers would treat a name that contains a number as an image
            # sequence.
            local = stack.enter_context(file_kinds.make_local(source))
            # FFmpeg would read "concat:a.mp4" as a protocol.
            capture = cv2.VideoCapture(os.path.abspath(local), cv2.CAP_FFMPEG)
        stack.callback(capture.release)
        if not capture.isOpened():
            reason = (
                "was not found" if _is_camera(source) else "is not a video or is broken"
            )
            raise UserError(f"{_describe(source)} {reason}")
        yield Video(capture, source)


@contextlib.contextmanager
def write_video(
    path: str, rate: float, size: tuple[int, int]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends frames, uint8 RGB `[height, width, 3]`, to an MP4.

    The file is published when the block ends, even after an error, with the frames so
    far. The codec needs even sides, so odd ones are extended by repeating a row or
    column.

    Raises:
        UserError: if the file cannot be written.
    """
    _silence_opencv()
    odd = [(0, side % 2) for side in size]
    height, width = (side + side % 2 for side in size)
    failure = None
    with outputs.publish(path) as local:
        codec = cv2.VideoWriter_fourcc(*_CODEC)
        writer = cv2.VideoWriter(local, cv2.CAP_FFMPEG, codec, rate, (width, height))
        if not writer.isOpened():
            raise UserError(
                f"{path} cannot be written: this build of OpenCV cannot encode MP4"
            )

        def write(frame: np.ndarray) -> None:
            even = np.pad(frame, (*odd, (0, 0)), mode="edge")
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

        try:
            yield write
        except Exception as error:  # raised again after publishing
            failure = error
        finally:
            writer.release()
        # The writer does not report a full disk, but a truncated MP4 cannot be opened.
        if not cv2.VideoCapture(local, cv2.CAP_FFMPEG).isOpened():
            raise UserError(f"{path} could not be written; is the disk full?")
    if failure is not None:
        raise failure


def _silence_opencv() -> None:
    """Turns off OpenCV's own error messages."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
