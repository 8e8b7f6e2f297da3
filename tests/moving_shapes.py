"""Videos of moving shapes with any size and length."""

import cv2
import numpy as np

RED, BLUE, GROUND = (220, 30, 30), (20, 60, 220), (60, 90, 40)  # RGB


def frame(i, height=121, width=161):
    """Returns a frame, uint8 RGB: a red disc moves right, a blue square moves left."""
    image = np.full((height, width, 3), GROUND, np.uint8)
    x = 3 * i % width
    cv2.circle(image, (x, height // 2), height // 6, RED, -1)
    corner = (width - x, height // 8)
    cv2.rectangle(image, corner, (corner[0] + 25, corner[1] + 25), BLUE, -1)
    return image


def write(path, count=30, height=121, width=161, rate=12):
    """Writes an AVI with an OpenCV writer that supports odd sizes; returns the path."""
    writer = cv2.VideoWriter(
        str(path),
        cv2.CAP_OPENCV_MJPEG,
        cv2.VideoWriter_fourcc(*"MJPG"),
        rate,
        (width, height),
    )
    for i in range(count):
        writer.write(cv2.cvtColor(frame(i, height, width), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def frames(path):
    """Reads all frames of a video with OpenCV, uint8 RGB."""
    capture = cv2.VideoCapture(str(path))
    images = []
    while True:
        has_frame, image = capture.read()
        if not has_frame:
            return images
        images.append(image[..., ::-1])
