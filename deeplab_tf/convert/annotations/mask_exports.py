"""Recognises exports that consist of masks and a class file."""

import os
from collections.abc import Sequence

from deeplab_tf.errors import UserError

_CVAT, _ROBOFLOW = "labelmap.txt", "_classes.csv"


def refuse(folder: str, names: Sequence[str]) -> None:
    """Refuses a folder of exported masks, and names the flags that convert it.

    Args:
        folder: The folder.
        names: The files below it, with forward slashes.

    Raises:
        UserError: if it is a mask export from CVAT or Roboflow.
    """
    for name in names:
        base = os.path.basename(name)
        below = os.path.normpath(os.path.join(folder, os.path.dirname(name)))
        if base == _ROBOFLOW:
            raise UserError(
                f"--annotations={folder} contains Roboflow masks; use "
                f"--image_dir={below} --label_dir={below} --label_suffix=_mask "
                f"--classes={os.path.join(below, base)} instead"
            )
        if base == _CVAT:
            masks = os.path.join(below, "SegmentationClass")
            raise UserError(
                f"--annotations={folder} contains CVAT masks; use --label_dir={masks} "
                f"--classes={os.path.join(below, base)} instead"
            )
