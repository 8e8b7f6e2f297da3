"""The page that labels images in a browser."""

import base64
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from html_pages import Page
from PIL import Image

from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import ModelConfig
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.errors import UserError
from deeplab_tf.images.decoding import decode_rows
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.browser import export_html

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
INFO = DatasetInfo("toys", ("<b>floor</b>", "b", "c", "d", "e"))
DRIVER = pathlib.Path(__file__).with_name("browser_driver.js")
FILES = {"ort.wasm.bundle.min.mjs": b"script", "ort-wasm-simd-threaded.wasm": b"wasm"}


@pytest.fixture
def runtime(tmp_path):
    """A folder like the npm package; the page contains its files whatever they are."""
    folder = tmp_path / "onnxruntime-web/dist"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return str(folder.parent)


def unpack(page, name):
    text = re.search(f'<script type="text/plain" id="{name}">(.*?)<', page.source)[1]
    return gzip.decompress(base64.b64decode(text))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_page_contains_model_and_runtime(tiny_model, runtime, tmp_path, precision):
    path = tmp_path / "demo.html"
    export_html(tiny_model, str(path), runtime, INFO, precision, ["export.py", "--x"])
    page = Page(path.read_text())
    assert [unpack(page, name) for name in ("runtime", "wasm")] == list(FILES.values())
    graph = onnx.load_from_string(unpack(page, "model")).graph
    assert [x.name for x in graph.input] == ["ImageTensor"]
    kinds = {x.data_type for x in graph.initializer if np.prod(x.dims) > 100}
    halves = precision == "float16"
    assert (onnx.TensorProto.FLOAT16 in kinds) == halves
    assert "export.py --x" in page.text and "<b>floor" not in page.source
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none';")
    assert not re.search("https?:|src=|href=", page.source.split("<script")[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "demo.txt"}, "the name of a page must end in .html; received demo"),
        (
            {"runtime": "none"},
            "needs none/dist/ort.wasm.*; run npm install onnxruntime-",
        ),
        (
            {"info": DatasetInfo("five", tuple("abcde"), channels=5)},
            r"needs a model for RGB images, 0..255; this one takes 5 channels, 0..255",
        ),
        ({"precision": "int8"}, "precision must be float32 or float16"),
    ],
)
def test_invalid_arguments_are_refused(tiny_model, runtime, tmp_path, change, message):
    arguments = {"path": str(tmp_path / "demo.html"), "runtime": runtime, "info": INFO}
    with pytest.raises(UserError, match=message):
        export_html(tiny_model, **arguments | change)
    assert not (tmp_path / "demo.html").exists()


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with ONNX Runtime for browsers and the packages of the driver."""
    folder = tmp_path_factory.mktemp("npm")
    names = ("onnxruntime-web", "puppeteer-core", "axe-core")
    if not shutil.which("chromium") or not shutil.which("npm"):
        pytest.skip("needs chromium and npm")
    command = ["npm", "install", "--prefix", folder, "--ignore-scripts", *names]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"npm cannot install {', '.join(names)}")
    return folder


@pytest.mark.slow
def test_browser_labels_images_like_the_model(
    packages, voc_root, voc_checkpoint, tmp_path
):
    config = ModelConfig.from_official_flags(
        {"model_variant": "mobilenet_v2", "num_classes": 21}
    )
    model = build_model(config)
    load_tf1_checkpoint(model, voc_checkpoint)
    page, info = tmp_path / "demo.html", dataset_info("pascal_voc_seg")
    export_html(model, str(page), str(packages / "node_modules/onnxruntime-web"), info)
    names = (voc_root / "ImageSets/Segmentation/val.txt").read_text().split()[:10]
    expected = {}
    for name in names:
        # As PNG, because the browser decodes JPEGs more exactly than TensorFlow.
        content = (voc_root / f"JPEGImages/{name}.jpg").read_bytes()
        image, _ = decode_rows(tf.constant(content), 0, 10**4, 3, 255)
        Image.fromarray(image.numpy()).save(tmp_path / f"{name}.png")
        expected[name] = Predictor(model).labels(image[None]).numpy()
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = [*(tmp_path / f"{name}.png" for name in names), tmp_path / "broken.png"]
    result = subprocess.run(
        ["node", DRIVER, page.as_uri(), *files],
        cwd=packages,
        env=os.environ | {"BROWSER": shutil.which("chromium")},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *labelled, broken, camera, last = map(json.loads, result.stdout.splitlines())
    agreements = [
        np.mean(np.array(each["ids"]) == labels.ravel())
        for each, labels in zip(labelled, expected.values(), strict=True)
    ]
    assert np.mean(agreements) >= 0.999
    for each, labels in zip(labelled, expected.values(), strict=True):
        shown = {info.class_names[label] for label in np.unique(labels)}
        assert set(each["classes"]) == shown
    assert broken["status"] == "broken.png is not an image that this browser can read."
    assert re.fullmatch(r"321 by 241 pixels, labelled in \d\.\d\d s", camera["status"])
    assert last == {"name": "page", "overflow": 0, "violations": [], "problems": []}
