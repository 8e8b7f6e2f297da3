"""Semantic Boundaries Dataset (Hariharan et al., ICCV 2011): more labels for VOC.

Its archive has `benchmark_RELEASE/dataset/` with `train.txt`, `val.txt` and one
`cls/<name>.mat` for each image, which is in PASCAL VOC.
"""

import io

import numpy as np
import scipy.io
from etils import epath

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import image_files

FOLDER = "benchmark_RELEASE/dataset"
MEMBERS = tuple(f"{FOLDER}/{name}" for name in ("cls", "train.txt", "val.txt"))


def names(folder: epath.Path) -> set[str]:
    """Returns the images that have a label, of both of its own splits.

    Args:
        folder: The extracted `FOLDER`.
    """
    lists = (folder / "train.txt", folder / "val.txt")
    return {name for path in lists for name in image_files.read_names(path)}


def read_label(path: epath.Path) -> np.ndarray:
    """Returns the class ids of a label, uint8 `[height, width]`.

    Args:
        path: MATLAB file with the struct `GTcls`; classes as in VOC.

    Raises:
        UserError: if the file is broken or holds something else.
    """
    content = file_kinds.read_bytes(path)
    try:
        content = scipy.io.loadmat(io.BytesIO(content))
    except Exception as error:  # SciPy raises whatever it stumbles over
        raise UserError(f"{path} is broken: {error}") from error
    try:
        label = np.asarray(content["GTcls"]["Segmentation"][0, 0])
        ids = label.astype(np.uint8)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} has no GTcls.Segmentation: {error}") from error
    if label.ndim != 2 or not np.array_equal(ids, label):
        raise UserError(
            f"{path} has a {label.dtype} array of the shape {label.shape} as "
            "GTcls.Segmentation; it is height x width class ids"
        )
    return ids
