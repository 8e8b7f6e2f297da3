"""Copies georeferences of GeoTIFFs to their labels, with rasterio (extra `geo`)."""

import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import formats

_TAGS = (33550, 34264)  # pixel scale, transformation
_Path = str | os.PathLike[str]


class Georeference(NamedTuple):
    """Coordinate reference system and affine transform of an image, as in rasterio."""

    crs: Any
    transform: Any


def is_geotiff(path: _Path) -> bool:
    """Returns whether a file is a TIFF with the tags of a GeoTIFF."""
    with file_kinds.open_file(path) as file:
        if not formats.is_tiff(file.read(4)):
            return False
        file.seek(0)
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        except Exception:  # Pillow may raise any exception
            return False
        return any(tag in tags for tag in _TAGS)


def has_rasterio() -> bool:
    """Returns whether rasterio is installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


def read_georeference(path: _Path) -> Georeference:
    """Returns the georeference of a GeoTIFF.

    Raises:
        UserError: if rasterio cannot read it.
    """
    import rasterio

    try:
        with rasterio.open(os.fspath(path)) as file:
            return Georeference(file.crs, file.transform)
    except rasterio.errors.RasterioError as error:
        raise UserError(
            f"{path} is a GeoTIFF that rasterio cannot read: {error}"
        ) from error


def encode_labels(labels: np.ndarray, reference: Georeference) -> bytes:
    """Encodes labels `[height, width]`, uint8, as a compressed GeoTIFF."""
    import rasterio

    height, width = labels.shape
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "labels.tif")
        profile = {
            **{"driver": "GTiff", "height": height, "width": width, "count": 1},
            **{"dtype": "uint8", "compress": "deflate", "BIGTIFF": "IF_SAFER"},
        }
        with rasterio.open(path, "w", **profile, **reference._asdict()) as file:
            file.write(labels, 1)
        return file_kinds.read_bytes(path)
