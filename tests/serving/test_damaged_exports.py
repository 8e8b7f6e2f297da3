"""Damaged exports give labels or one line, whatever the damage."""

import pathlib
import shutil

import numpy as np
import pytest
from noise_images import blocky_photos

from deeplab_tf.errors import UserError
from deeplab_tf.serving.formats import load_artefact
from deeplab_tf.serving.onnx_file import export_onnx
from deeplab_tf.serving.openvino_file import export_openvino
from deeplab_tf.serving.tflite_export import export_tflite

pytestmark = pytest.mark.slow
# File to damage, and the modules that export and load it.
FILES = {
    "m.onnx": ("tf2onnx", "onnxruntime"),
    "m.xml": ("tf2onnx", "openvino"),
    "m.bin": ("tf2onnx", "openvino"),
    "m.tflite": ("ai_edge_litert.interpreter",),
    "saved_model.pb": (),
    "variables/variables.index": (),
}


def damage(content, random):
    """Cuts the end off, or changes bits or a range of bytes."""
    content = bytearray(content)
    position = random.integers(len(content))
    kind = random.integers(4)
    if kind == 0:
        return content[:position]
    if kind == 1:
        content[position : position + random.integers(64)] = bytes(8)
        return content
    for i in random.integers(len(content), size=(1, 30)[kind - 2]):
        content[i] ^= 1 << random.integers(8)
    return content


@pytest.fixture(scope="module", params=FILES)
def source(request, tiny_model, tiny_export, tmp_path_factory):
    """A folder with an export, its path in there, and the file to damage."""
    for module in FILES[request.param]:
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("source")
    suffix = pathlib.PurePath(request.param).suffix
    if not FILES[request.param]:
        shutil.copytree(tiny_export, folder / "export")
        return folder, "export", f"export/{request.param}"
    if suffix == ".tflite":
        export_tflite(tiny_model, str(folder / "m.tflite"), (33, 49))
        return folder, "m.tflite", "m.tflite"
    name = "m.onnx" if suffix == ".onnx" else "m.xml"
    export = export_onnx if suffix == ".onnx" else export_openvino
    export(tiny_model, str(folder / name))
    return folder, name, request.param


def test_damaged_files_give_one_line(source, tmp_path):
    folder, name, damaged = source
    images, refused = blocky_photos(1, 33, 49), 0
    for seed in range(40):
        copy = tmp_path / str(seed)
        shutil.copytree(folder, copy)
        content = (folder / damaged).read_bytes()
        (copy / damaged).write_bytes(damage(content, np.random.default_rng(seed)))
        try:
            labels = load_artefact(str(copy / name)).labels(images)
            assert labels.shape == (1, 33, 49)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(copy / name) in str(error)
    assert refused >= 10
