"""Exports a model as one HTML file that labels images in a browser, offline.

The template is `evaluation/templates/demo.html`; ONNX Runtime's WebAssembly build runs
the model.
"""

import base64
import gzip
from collections.abc import Sequence

import keras

from deeplab_tf import visualize
from deeplab_tf.arguments import check_arguments
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, import_extra
from deeplab_tf.evaluation.page import (
    describe_class,
    describe_origin,
    render,
)
from deeplab_tf.models.checks import BUILT
from deeplab_tf.serving import onnx_quantization
from deeplab_tf.serving.artefact import read_file
from deeplab_tf.serving.choices import HTML, HTML_PRECISIONS, find_runtime
from deeplab_tf.serving.onnx_file import convert_to_onnx
from deeplab_tf.serving.publication import publish_artefact, require_replaceable


@check_arguments(model=BUILT, precision=HTML_PRECISIONS)
def export_html(
    model: keras.Model,
    path: str,
    runtime: str,
    info: DatasetInfo,
    precision: str = "float32",
    command: Sequence[str] = (),
) -> None:
    """Writes a page that labels a chosen image or the camera in a browser.

    The page contains the model and ONNX Runtime, and makes no requests. Its labels are
    those of `predict_labels` at one scale, for images of up to a million pixels; larger
    ones are shrunk.

    Args:
        model: A float32 model of `build_model` for RGB images.
        path: File to write atomically, ending in `.html`.
        runtime: Folder of the npm package `onnxruntime-web`.
        info: Class names.
        precision: "float32", or "float16" to store 16-bit weights.
        command: Arguments of the command line, to show on the page.

    Raises:
        UserError: if the converter or the runtime is not installed, `path` may not be
            replaced, or the model is not a float32 model for RGB images.
    """
    if not path.endswith(HTML):
        raise UserError(f"the name of a page must end in .html; received {path}")
    require_replaceable(path)
    if (info.channels, info.max_value) != (3, 255):
        raise UserError(
            f"{path} needs a model for RGB images, 0..255; this one takes "
            f"{info.channels} channels, 0..{info.max_value}"
        )
    script, wasm = map(read_file, find_runtime(runtime, path))
    needed_by = f"{path}: pages need"
    import_extra("onnx", "export", needed_by)
    converted = convert_to_onnx(model, False, needed_by)
    if precision == "float16":
        onnx_quantization.store_as_float16(converted)
    distinct = visualize.use_distinct_colors(info)
    text = render(
        "demo.html",
        "demo.js",
        title=f"Segmentation of {info.name}",
        classes=[describe_class(i, distinct) for i in range(info.num_classes)],
        runtime=_pack(script),
        wasm=_pack(wasm),
        model=_pack(converted.SerializeToString()),
        run=describe_origin(command),
    )
    with publish_artefact(path) as unfinished, open(unfinished, "w") as file:
        file.write(text)


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
