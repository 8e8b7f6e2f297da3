"""Draws the curves of a training run: loss, score and learning rate."""

import functools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import ndimage

from deeplab_tf.files.outputs import write_bytes
from deeplab_tf.training.history import MEASURES, History
from deeplab_tf.visualize import encode_png, render

CURVES_FILE = "curves.png"
_LOSS, _LEARNING_RATE, _SCORE = "tab:blue", "tab:gray", "tab:green"


def draw_curves(history: History, path: str) -> None:
    """Plots loss, score and learning rate to a PNG; nothing if the history is empty."""
    if not history.rows:
        return
    draw_score = functools.partial(_draw_score, MEASURES[history.measure])
    drawings = [(_draw_loss, "data_loss", 3), (draw_score, history.measure, 3)]
    drawings.append((_draw_learning_rate, "learning_rate", 1))
    drawings = [d for d in drawings if len(history.values(d[1])[0])]
    heights = [height for *_, height in drawings]
    figure = Figure(figsize=(9, sum(heights) + 1), layout="constrained")
    all_axes = figure.subplots(
        len(drawings), sharex=True, squeeze=False, height_ratios=heights
    )
    for axes, (draw, name, _) in zip(all_axes[:, 0], drawings, strict=True):
        draw(axes, *history.values(name))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1, 0].set_xlabel("step")
    locator = MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    all_axes[-1, 0].xaxis.set_major_locator(locator)
    write_bytes(encode_png(render(figure)), path)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the trend of noisy values, robust against outliers."""
    width = len(values) // 50 | 1
    medians = ndimage.median_filter(values, width, mode="reflect")
    return ndimage.gaussian_filter1d(medians, width / 3, mode="reflect")


def _marker(steps) -> str | None:
    """Returns a marker for a curve with a single point, which has no line."""
    return "o" if len(steps) == 1 else None


def _draw_loss(axes, steps, losses) -> None:
    smoothed = _smooth(losses)
    axes.plot(steps, losses, color=_LOSS, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed, color=_LOSS, linewidth=1.8, marker=_marker(steps))
    # A single outlier would flatten the rest.
    axes.set_ylim(0, 1.3 * smoothed.max() or 1)
    axes.set_ylabel("data loss")


def _draw_score(name: str, axes, steps, scores) -> None:
    """Plots the scores in per cent and marks the best one."""
    best = np.argmax(scores)
    axes.plot(steps, scores, color=_SCORE, linewidth=1.8, marker="o", markersize=4)
    axes.plot(
        steps[best],
        scores[best],
        color="tab:red",
        marker="*",
        markersize=15,
        linestyle="",
        label=f"best: {scores[best]:.2%} at step {steps[best]:.0f}",
    )
    axes.legend(loc="lower right")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel(name)


def _draw_learning_rate(axes, steps, rates) -> None:
    axes.plot(steps, rates, color=_LEARNING_RATE, marker=_marker(steps))
    axes.set_ylim(0, 1.1 * rates.max() or 1)
    axes.set_ylabel("learning rate")
