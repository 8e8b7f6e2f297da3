"""Collects example images during an evaluation."""

import collections
import dataclasses

import numpy as np

from deeplab_tf.evaluation import confusion
from deeplab_tf.visualize import convert_to_rgb


@dataclasses.dataclass(frozen=True)
class ScoredImage:
    """An image with its ground truth, prediction and score.

    Attributes:
        name: Name of the image.
        image: uint8 RGB `[height, width, 3]`.
        truth: Labels, uint8 `[height, width]`.
        prediction: Class ids, uint8 `[height, width]`.
        miou: Mean IoU, 0..1, over classes in the image; None without scored pixels.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    miou: float | None


class Gallery:
    """Collects the first images of a split, and those with the best and worst scores.

    Args:
        num_classes: Number of classes.
        ignore_label: Label of pixels that are not scored.
        first: Number of first images to keep.
        extremes: Number of best images, and of worst images, to keep.

    Attributes:
        first: The first images, in the order of the split.
        scores: Mean IoU of each image by name, if extremes are kept; None without
            scored pixels. Names that occur again are numbered: `a`, `a (2)`.
    """

    def __init__(
        self, num_classes: int, ignore_label: int, first: int = 0, extremes: int = 0
    ):
        self._classes = num_classes, ignore_label
        self._first, self._extremes = first, extremes
        self.reset()

    def reset(self) -> None:
        """Removes all images."""
        self.first, self.scores = [], {}
        self._worst, self._best = [], []
        self._names: collections.Counter[str] = collections.Counter()

    def update(self, name: str, image, truth, prediction) -> None:
        """Scores an image `[h, w, channels]`, 0..255, and keeps it if shown later.

        Does nothing if only first images are wanted, and all of them are kept.
        """
        if not self._extremes and len(self.first) >= self._first:
            return
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name} ({self._names[name]})"
        miou = self._score(truth, prediction)
        self.scores[name] = miou
        is_worst = miou is not None and self._is_extreme(self._worst, -miou)
        is_best = miou is not None and self._is_extreme(self._best, miou)
        is_first = len(self.first) < self._first
        if not (is_worst or is_best or is_first):
            return
        # Copy, so that the memory of the batch can be freed.
        truth, prediction = truth.astype(np.uint8), prediction.astype(np.uint8)
        scored = ScoredImage(
            name, convert_to_rgb(image).copy(), truth, prediction, miou
        )
        if is_first:
            self.first.append(scored)
        if is_worst:
            self._insert(self._worst, scored, -miou)
        if is_best:
            self._insert(self._best, scored, miou)

    def _score(self, truth, prediction) -> float | None:
        """Returns the mean IoU of an image, None without scored pixels."""
        counts = confusion.confusion_matrix(truth, prediction, *self._classes)
        return confusion.mean_iou(counts) if counts.any() else None

    def _is_extreme(self, kept: list, rank: float) -> bool:
        """Returns whether a rank is among those to keep."""
        return len(kept) < self._extremes or (self._extremes > 0 and rank > kept[-1][0])

    def _insert(self, kept: list, scored: ScoredImage, rank: float) -> None:
        """Adds an image to a list sorted by rank; drops the last beyond the limit."""
        kept.append((rank, scored))
        # The sort is stable, so of equal scores, the earlier image is kept.
        kept.sort(key=lambda pair: -pair[0])
        del kept[self._extremes :]

    @property
    def worst(self) -> list[ScoredImage]:
        """The images with the lowest scores, the worst first."""
        return [scored for _, scored in self._worst]

    @property
    def best(self) -> list[ScoredImage]:
        """The images with the highest scores, best first, except those in `worst`."""
        shown = {id(scored) for _, scored in self._worst}
        return [scored for _, scored in self._best if id(scored) not in shown]
