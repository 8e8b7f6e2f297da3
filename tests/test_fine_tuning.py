"""The official checkpoint fine-tuned on real images, up to predictions."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import program_runs
import pytest
import tensorflow as tf
from conftest import ROOT
from PIL import Image
from record_files import make_record, write_shards

import deeplab_tf
from deeplab_tf.checkpoints.tf1 import read_variables
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.presets import find_preset
from deeplab_tf.training import losses

STEPS = 300


def run(*arguments) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def compute_loss(checkpoint: str, batches) -> float:
    config = deeplab_tf.ModelConfig.from_official_flags({})
    model = deeplab_tf.build_model(config)
    assert deeplab_tf.load_tf1_checkpoint(model, checkpoint).complete
    return np.mean(
        [
            losses.segmentation_loss(labels, model(images, training=False))
            for images, labels in batches
        ]
    )


def test_official_checkpoint_is_fine_tuned_with_new_classes(
    eager_execution, voc_checkpoint, tmp_path
):
    info = DatasetInfo("toys", tuple("abcdefg"))
    label = np.arange(33 * 33, dtype=np.uint8).reshape(33, 33) % 7
    image = np.random.RandomState(0).randint(0, 256, (33, 33, 3))
    write_shards(tmp_path / "data", make_record(image, label, "first"))
    records.write_info(info, str(tmp_path / "data"))
    out = program_runs.run(
        *(
            "deeplab_tf.programs.train",
            "--model_variant=mobilenet_v2",
            "--fine_tune_batch_norm=false",
        ),
        *(f"--tf_initial_checkpoint={voc_checkpoint}", "--training_number_of_steps=1"),
        *("--train_crop_size=33,33", "--train_batch_size=1", "--base_learning_rate=0"),
        *(f"--dataset_dir={tmp_path}/data", f"--train_logdir={tmp_path}/logs"),
    )
    assert "270 restored, 2 skipped because of their shape (logits/semantic/" in out
    assert "missing" not in out and "warning" not in out
    official = read_variables(voc_checkpoint)
    tuned = read_variables(f"{tmp_path}/logs/model.ckpt-1")
    assert tuned["logits/semantic/weights"].shape == (1, 1, 256, 7)
    # Nothing changes at a learning rate of 0.
    same = [n for n in tuned if np.array_equal(tuned[n], official[n])]
    assert sorted(set(tuned) - set(same)) == [
        "logits/semantic/biases",
        "logits/semantic/weights",
    ]


@pytest.fixture
def camvid_records(camvid, tmp_path):
    """TFRecords of the real images of train and val."""
    info = tmp_path / "info.json"
    info.write_text(json.dumps(dataclasses.asdict(dataset_info("camvid"))))
    for split in ("train", "val"):
        run(
            *("-m", "datasets.folder", f"--image_dir={camvid}/{split}"),
            *(f"--label_dir={camvid}/{split}annot", f"--classes={info}"),
            *(f"--split={split}", f"--output_dir={tmp_path}/camvid"),
        )
    return f"{tmp_path}/camvid"


@pytest.mark.slow
def test_camvid_preset_reaches_its_first_expected_miou(
    camvid_records, voc_checkpoint, tmp_path
):
    step, expected = find_preset("camvid_mobilenetv2").expected_miou[0]
    command = [sys.executable, "train.py", "--preset=camvid_mobilenetv2"]
    command += [f"--dataset_dir={camvid_records}", f"--train_logdir={tmp_path}/logs"]
    command += [f"--tf_initial_checkpoint={voc_checkpoint}"]
    # Keeps the number of steps of the preset: the learning rate depends on it.
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as training:
        lines = []
        for line in training.stdout:
            lines.append(line)
            if f"step {step}: " in line:
                break
        training.terminate()
    assert re.search(
        rf"step {step}: mIoU 0\.\d+, .*as expected \({expected:.2f}\)", lines[-1]
    ), lines[-5:]


@pytest.mark.slow
def test_voc_fine_tuning_from_records_to_predictions(
    voc_records, voc_root, voc_checkpoint, tmp_path
):
    logs, exported = tmp_path / "logs", tmp_path / "exported"
    run(
        *("train.py", "--model_variant=mobilenet_v2", "--fine_tune_batch_norm=false"),
        *(f"--tf_initial_checkpoint={voc_checkpoint}", f"--dataset_dir={voc_records}"),
        *(f"--train_logdir={logs}", "--train_crop_size=513,513"),
        *("--train_batch_size=4", "--base_learning_rate=2e-5"),
        f"--training_number_of_steps={STEPS}",
    )
    data = deeplab_tf.DataConfig(
        str(voc_records), crop_size=(513, 513), batch_size=24, seed=7
    )
    # About as many crops as images: the loss of one batch of 24 varies by 1 to 16%.
    batches = list(deeplab_tf.load_dataset(data, "train", training=True).take(4))
    before, after = (
        compute_loss(voc_checkpoint, batches),
        compute_loss(str(logs), batches),
    )
    print(f"loss of fixed batches: {before:.4f} before, {after:.4f} after")
    assert after < 0.97 * before

    run("eval.py", f"--checkpoint_dir={logs}", f"--eval_logdir={tmp_path / 'eval'}")
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    print(f"mIoU of 60 images: {metrics['miou']:.4f}")
    assert metrics["images"] == 60
    assert metrics["miou"] >= 0.74

    run("export.py", f"--checkpoint_path={logs}", f"--export_path={exported}")
    names = (voc_root / "ImageSets/Segmentation/val.txt").read_text().split()[:5]
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in names:
        content = (voc_root / f"JPEGImages/{name}.jpg").read_bytes()
        (photos / f"{name}.jpg").write_bytes(content)
    for model, folder in ((exported, "a"), (logs, "b")):
        run(
            *("-m", "deeplab_tf.predict", f"--model={model}", f"--images={photos}"),
            f"--output_dir={tmp_path / folder}",
        )
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    for name in names:
        a, b = (
            np.array(Image.open(tmp_path / folder / f"{name}_label.png"))
            for folder in "ab"
        )
        assert np.array_equal(a, b)
        image = tf.io.decode_jpeg((photos / f"{name}.jpg").read_bytes())[None]
        assert np.array_equal(signature(ImageTensor=image)["SemanticPredictions"][0], a)
        assert (tmp_path / "a" / f"{name}_overlay.png").exists()
