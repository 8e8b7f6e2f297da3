"""Semantic Boundaries Dataset (SBD; Hariharan et al., ICCV 2011): more labels for VOC.

Its archive contains `train.txt`, `val.txt` and `cls/<name>.mat` for images of VOC.
"""

import io
import os

import numpy as np
import scipy.io
from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, text_files

FOLDER = "benchmark_RELEASE/dataset"
MEMBERS = tuple(f"{FOLDER}/{name}" for name in ("cls", "train.txt", "val.txt"))


def list_names(folder: epath.Path) -> set[str]:
    """Returns the names of the labelled images in an extracted `FOLDER`."""
    lists = (folder / "train.txt", folder / "val.txt")
    return {name for path in lists for name in text_files.read_words(os.fspath(path))}


def read_label(path: epath.Path) -> np.ndarray:
    """Reads VOC class ids, uint8 `[height, width]`, from `GTcls` in a MATLAB file.

    Raises:
        UserError: if the file is broken or has no such struct.
    """
    content = file_kinds.read_bytes(path)
    try:
        content = scipy.io.loadmat(io.BytesIO(content))
    except Exception as error:  # SciPy raises anything
        raise UserError(f"{path} is broken: {error}") from error
    try:
        label = np.asarray(content["GTcls"]["Segmentation"][0, 0])
        ids = label.astype(np.uint8)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} has no GTcls.Segmentation: {error}") from error
    if label.ndim != 2 or not np.array_equal(ids, label):
        raise UserError(
            f"{path}: GTcls.Segmentation is a {label.dtype} array of shape "
            f"{label.shape}; it must contain height x width class ids"
        )
    return ids
