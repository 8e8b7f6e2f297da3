"""Images of noise, for tests that compare exports with their model."""

import numpy as np


def photos(*shape):
    """Returns uint8 RGB noise `[*shape, 3]`."""
    return np.random.RandomState(6).randint(0, 256, (*shape, 3)).astype(np.uint8)


def blocky_photos(batch, height, width):
    """Returns noise in blocks of 8 pixels, which contains more than one class."""
    coarse = np.random.RandomState(3).randint(0, 256, (batch, 9, 9, 3))
    photo = np.kron(coarse, np.ones((1, 8, 8, 1)))[:, :height, :width]
    return photo.astype(np.uint8)
