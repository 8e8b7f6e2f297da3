"""A model zoo on disk, with archives in the layout of the official ones."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import tarfile
import tempfile

from golden_case import value
from shallow_network import patch_mobilenet_v2

from deeplab_tf.checkpoints.restore import load_tf1_variables, tf1_variables
from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.checkpoints.zoo import ZOO, ZooCheckpoint
from deeplab_tf.config import ContextConfig, DecoderConfig, EvalConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.presets import PRESETS

REAL = "mobilenetv2_coco_voc_trainval"
MODEL = ModelConfig(
    depth_multiplier=0.1,
    context=ContextConfig(rates=(6,), filters=16),
    decoder=DecoderConfig(output_strides=(4,), filters=16),
)


def pack(archive, source, folder="some_folder"):
    """Packs the files of a folder in the layout of the official archives."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in sorted(os.listdir(source)):
            tar.add(os.path.join(source, name), f"{folder}/{name}")
    return archive


def _value(name, array):
    # Doubled, because otherwise every pixel of an image gets the same class.
    return value(name, array.shape) * (2 if name.endswith("/gamma") else 1)


@functools.cache
def _tiny_checkpoint():
    """Returns the weights by official name and the files of their checkpoint."""
    model = build_model(MODEL)
    arrays = {name: _value(name, a) for name, a in tf1_variables(model).items()}
    load_tf1_variables(model, arrays)
    with tempfile.TemporaryDirectory() as folder:
        save_tf1_checkpoint(model, f"{folder}/model.ckpt-30000")
        files = {
            path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()
        }
    return arrays, files


def add_tiny_checkpoint(monkeypatch, folder, **published):
    """Registers a checkpoint "tiny" in the zoo and writes its archive to a folder.

    Its three evaluation protocols differ; its labels vary within an image.

    Returns:
        `{official name: array}` of its weights.
    """
    patch_mobilenet_v2(monkeypatch)
    arrays, files = _tiny_checkpoint()
    (folder / "made").mkdir()
    for name, content in files.items():
        (folder / "made" / name).write_bytes(content)
    pack(folder / "zoo/tiny.tar.gz", folder / "made")
    preset = dataclasses.replace(
        PRESETS["mobilenetv2_coco_voc_trainaug"],
        name="tiny",
        model=MODEL,
        evaluation=EvalConfig(eval_crop_size=(65, 97)),
    )
    if published:
        figures = dataclasses.replace(preset.published, **published)
        preset = dataclasses.replace(preset, published=figures)
    test = dataclasses.replace(preset, name="tiny_test", eval_split="test")
    multi_scale = dataclasses.replace(
        preset,
        name="tiny_os8_ms_flip",
        eval_output_stride=8,
        evaluation=EvalConfig((0.5, 1.5), True, eval_crop_size=(65, 97)),
        data=dataclasses.replace(
            preset.data, min_resize_value=49, max_resize_value=97, resize_factor=16
        ),
    )
    row = ZooCheckpoint("tiny", "tiny.tar.gz", (preset, test, multi_scale))
    monkeypatch.setitem(ZOO, "tiny", row)
    monkeypatch.setenv("DEEPLAB_TF_ZOO", f"file://{folder}/zoo")
    return dict(arrays)


def add_real_checkpoint(monkeypatch, folder, source):
    """Packs the real checkpoint like its official archive and registers it.

    The packed archive has its own SHA-256.
    """
    row = ZOO[REAL]
    archive = pack(
        folder / "zoo" / row.archive, source, "deeplabv3_mnv2_pascal_trainval"
    )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(ZOO, REAL, dataclasses.replace(row, sha256=digest))
    monkeypatch.setenv("DEEPLAB_TF_ZOO", f"file://{folder}/zoo")
    return archive
