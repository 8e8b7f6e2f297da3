"""Writes self-contained HTML pages, without fonts or other files.

The templates in `templates/` are autoescaped.
"""

import base64
import functools
import hashlib
import io
import platform
import shlex
from collections.abc import Sequence

import jinja2
import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import deeplab_tf
from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.files.outputs import write_text

NOTHING = "\u2013"


def format_percent(share: float | None) -> str:
    """Formats a fraction as a percentage without the sign; a dash for None and NaN."""
    if share is None or np.isnan(share):
        return NOTHING
    return f"{100 * share:.2f}"


def format_setting(value: object) -> str:
    """Formats a setting of the protocol; a dash for None and empty lists."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_setting, value)) or NOTHING
    return str(value)


@functools.cache
def _load_templates() -> jinja2.Environment:
    """Loads the HTML templates, which escape their variables."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deeplab_tf.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    formats = {
        "percent": format_percent,
        "setting": format_setting,
        "thousands": "{:,}".format,
    }
    environment.filters.update(formats)
    return environment


@functools.cache
def _load_script(name: str) -> dict[str, str]:
    """Returns a script of a page, and its hash for the page's policy."""
    environment = _load_templates()
    text = environment.loader.get_source(environment, name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": text, "script_hash": f"sha256-{digest}"}


def write_page(path: str, template: str, **data: object) -> None:
    """Renders a template and writes the page atomically.

    Args:
        path: Output file; its folder must exist.
        template: A file in `templates/` that extends `page.html`.
        **data: `title`, `headline`, `sections`, and variables of the template.
    """
    write_text(render(template, "viewer.js", **data), path)


def render(template: str, script: str, **data: object) -> str:
    """Renders a template with a script, and the hash of the script for the policy."""
    data |= _load_script(script)
    text = _load_templates().get_template(template).render(**data)
    # Arguments and file names that are not UTF-8 contain surrogates.
    return text.encode(errors="replace").decode() + "\n"


def describe_class(label: int, info: DatasetInfo) -> dict:
    """Returns the name and colour of a class for a template."""
    return {"name": info.class_names[label], "color": info.colors[label]}


def describe_origin(command: Sequence[str]) -> dict:
    """Returns the command line and the versions of the main packages, for a template.

    `command` has the arguments of the command line that created the page.
    """
    versions = {
        "deeplab_tf": deeplab_tf.__version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
    }
    return {"command": shlex.join(command), "versions": versions}


def fit(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Returns the width and height of a thumbnail with sides of at most `side`.

    `shape` starts with the height and width of the image.
    """
    height, width = shape[:2]
    scale = min(1, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels to a width and height by nearest neighbours.

    Class ids cannot be averaged.
    """
    centres = [
        ((np.arange(n) + 0.5) * side / n).astype(int)
        for n, side in zip(size[::-1], labels.shape, strict=True)
    ]
    return labels[np.ix_(*centres)]


def embed_labels(labels: np.ndarray, info: DatasetInfo, alt: str) -> dict:
    """Embeds labels `[height, width]` in the colours of their classes."""
    data = visualize.encode_palette_png(labels, info)
    return _embed_image(data, "png", alt, labels.shape[::-1])


def embed_png(image: np.ndarray, alt: str, density: int = 1) -> dict:
    """Embeds a uint8 image `[height, width, 3]` as a PNG for a template.

    `alt` is the alternative text; `density` is image pixels per pixel of the page.
    """
    size = image.shape[1] // density, image.shape[0] // density
    return _embed_image(visualize.encode_png(image), "png", alt, size)


def embed_jpeg(
    image: np.ndarray, alt: str, size: tuple[int, int], quality: int = 85
) -> dict:
    """Embeds a uint8 image, resized to `size` (width, height), as a JPEG."""
    file = io.BytesIO()
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=quality)
    return _embed_image(file.getvalue(), "jpeg", alt, size)


def _embed_image(data: bytes, kind: str, alt: str, size: tuple[int, int]) -> dict:
    text = base64.b64encode(data).decode()
    return {"kind": kind, "alt": alt, "width": size[0], "height": size[1], "data": text}
