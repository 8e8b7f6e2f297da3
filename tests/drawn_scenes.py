"""Draws random scenes of coloured shapes with their labels."""

import cv2
import numpy as np

NUM_CLASSES = 4


def draw_scene(seed, height=96, width=128):
    """Returns an image uint8 `[height, width, 3]` and its label `[height, width]`.

    Class 0 is a smooth background; each of 2 to 5 shapes has a class of 1 to 3.
    """
    rng = np.random.RandomState(seed)
    coarse = rng.randint(60, 200, (4, 4, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    label = np.zeros((height, width), np.uint8)
    for _ in range(rng.randint(2, 6)):
        class_id = int(rng.randint(1, NUM_CLASSES))
        color = rng.randint(0, 256, 3).tolist()
        center = int(rng.randint(width)), int(rng.randint(height))
        axes = rng.randint(8, 30, 2).tolist()
        for canvas, value in ((image, color), (label, class_id)):
            cv2.ellipse(canvas, center, axes, 30.0 * class_id, 0, 360, value, -1)
    noise = rng.normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), label
