"""Colours that readers with and without colour blindness can tell apart.

Distances are Euclidean in OKLab (https://bottosson.github.io/posts/oklab), times 100;
colour blindness is simulated by Machado, Oliveira and Fernandes (2009).
"""

import functools
from collections.abc import Sequence

import numpy as np

# Linear RGB as seen with complete protanopia, deuteranopia and tritanopia.
_SIMULATIONS = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_STEPS = 16  # candidates per channel
_OPACITY = 0.6  # of overlays
# Range of the lightness of a colour: small regions of darker ones look alike.
_LIGHTNESS = (32, 95)


def _convert_to_lab(colors: np.ndarray) -> np.ndarray:
    """Returns OKLab as seen in each simulation, `[4, colors, 3]`."""
    share = np.asarray(colors, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ _SIMULATIONS.transpose(0, 2, 1), 0, 1)
    return 100 * np.cbrt(seen @ _LMS.T) @ _LAB.T


def measure_distances(colors: Sequence, others: Sequence) -> np.ndarray:
    """Returns the distances between colours in the least favourable simulation.

    Colours are RGB 0..255; the result is `[colors, others]`. A distance of 2 is just
    noticeable between large patches side by side.
    """
    first, second = _convert_to_lab(colors), _convert_to_lab(others)
    differences = first[:, :, None] - second[:, None]
    return np.linalg.norm(differences, axis=-1).min(0)


@functools.cache
def choose_colors(
    count: int, reserved: tuple[tuple[int, int, int], ...] = ()
) -> tuple[tuple[int, int, int], ...]:
    """Chooses RGB colours that are far apart and far from reserved ones.

    The first colours are the most distinct: each is the one farthest from all before.
    """
    levels = np.rint(np.linspace(0, 255, _STEPS)).astype(int)
    candidates = np.stack(np.meshgrid(*[levels] * 3, indexing="ij"), -1).reshape(-1, 3)
    lightness = _convert_to_lab(candidates)[0, :, 0]
    darkest, lightest = _LIGHTNESS
    candidates = candidates[(lightness >= darkest) & (lightness <= lightest)]
    nearest = np.full(len(candidates), np.inf)
    chosen: list[tuple[int, int, int]] = []
    for color in reserved:
        nearest = np.minimum(nearest, _measure_both_ways(candidates, color))
    for _ in range(count):
        color = tuple(candidates[nearest.argmax()].tolist())
        chosen.append(color)
        nearest = np.minimum(nearest, _measure_both_ways(candidates, color))
    return tuple(chosen)


def blend_with_grey(colors: Sequence) -> np.ndarray:
    """Returns colours as they look in an overlay on a grey image."""
    return _OPACITY * np.asarray(colors) + (1 - _OPACITY) * 128


def _measure_both_ways(candidates: np.ndarray, color: Sequence) -> np.ndarray:
    """Returns the distances from a colour, opaque or, scaled, in an overlay."""
    opaque = measure_distances(candidates, [color])
    blended = measure_distances(blend_with_grey(candidates), [blend_with_grey(color)])
    return np.minimum(opaque, blended / _OPACITY)[:, 0]
