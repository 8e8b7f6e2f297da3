"""Exports of annotation tools that are masks and a class file."""

import os
from collections.abc import Sequence

from deeplab_tf.errors import UserError

_CVAT, _ROBOFLOW = "labelmap.txt", "_classes.csv"


def refuse(folder: str, names: Sequence[str]) -> None:
    """Refuses a folder of masks with the flags that convert it.

    Args:
        folder: The folder.
        names: The files below it, with forward slashes.

    Raises:
        UserError: if it is a mask export of CVAT or Roboflow.
    """
    for name in names:
        base = os.path.basename(name)
        below = os.path.normpath(os.path.join(folder, os.path.dirname(name)))
        if base == _ROBOFLOW:
            raise UserError(
                f"--annotations={folder} has masks of Roboflow; use "
                f"--image_dir={below} --label_dir={below} --label_suffix=_mask "
                f"--classes={os.path.join(below, base)} instead"
            )
        if base == _CVAT:
            masks = os.path.join(below, "SegmentationClass")
            raise UserError(
                f"--annotations={folder} has masks of CVAT; use --label_dir={masks} "
                f"--classes={os.path.join(below, base)} instead"
            )
