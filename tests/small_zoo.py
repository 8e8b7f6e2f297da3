"""A zoo on disk: archives as the official ones are, small or of real weights."""

import dataclasses
import hashlib
import os
import tarfile

from deeplab_tf.checkpoints.restore import tf1_variables
from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.checkpoints.zoo import ZOO, ZooCheckpoint
from deeplab_tf.config import ContextConfig, DecoderConfig, ModelConfig
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.presets import PRESETS

REAL = "mobilenetv2_coco_voc_trainval"
MODEL = ModelConfig(
    depth_multiplier=0.1,
    context=ContextConfig(rates=(6,), filters=16),
    decoder=DecoderConfig(output_strides=(4,), filters=16),
)


def pack(archive, source, folder="some_folder"):
    """Writes the files of a folder as the official archives have them."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in sorted(os.listdir(source)):
            tar.add(os.path.join(source, name), f"{folder}/{name}")
    return archive


def tiny_checkpoint(monkeypatch, folder, **published):
    """Puts a checkpoint called "tiny" into the table and its archive into a folder.

    Returns:
        `{official name: array}` of it.
    """
    model = build_model(MODEL)
    save_tf1_checkpoint(model, str(folder / "made/model.ckpt-30000"))
    pack(folder / "zoo/tiny.tar.gz", folder / "made")
    preset = dataclasses.replace(
        PRESETS["mobilenetv2_coco_voc_trainaug"], name="tiny", model=MODEL
    )
    if published:
        figures = dataclasses.replace(preset.published, **published)
        preset = dataclasses.replace(preset, published=figures)
    test = dataclasses.replace(preset, name="tiny_test", eval_split="test")
    row = ZooCheckpoint("tiny", "tiny.tar.gz", (preset, test))
    monkeypatch.setitem(ZOO, "tiny", row)
    monkeypatch.setenv("DEEPLAB_TF_ZOO", f"file://{folder}/zoo")
    return tf1_variables(model)


def real_checkpoint(monkeypatch, folder, source):
    """Packs the real checkpoint as the official archive, and makes that known.

    Packed here it has another SHA-256 than the official one.
    """
    row = ZOO[REAL]
    archive = pack(
        folder / "zoo" / row.archive, source, "deeplabv3_mnv2_pascal_trainval"
    )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(ZOO, REAL, dataclasses.replace(row, sha256=digest))
    monkeypatch.setenv("DEEPLAB_TF_ZOO", f"file://{folder}/zoo")
    return archive
