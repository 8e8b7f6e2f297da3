"""The model zoo and its benchmark."""

import dataclasses
import os
import subprocess
import sys
import types

import numpy as np
import program_runs
import pytest
from conftest import ROOT
from golden_case import FOLDER, GoldenCase
from small_zoo import REAL, add_real_checkpoint, add_tiny_checkpoint

from benchmarks import model_zoo
from deeplab_tf.checkpoints.pretrained import from_pretrained
from deeplab_tf.checkpoints.zoo import (
    ZOO,
    find_checkpoint,
    page,
    require_checkpoint,
)
from deeplab_tf.config import EvalConfig, ModelConfig
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import evaluate
from deeplab_tf.presets import PRESETS
from deeplab_tf.programs.zoo import describe_zoo


@pytest.fixture
def tiny_zoo(monkeypatch, tmp_path):
    """A zoo with one small, registered checkpoint."""
    return add_tiny_checkpoint(monkeypatch, tmp_path)


def test_each_zoo_preset_evaluates_one_checkpoint():
    presets = [preset for c in ZOO.values() for preset in c.evaluations]
    # Training stages have names of their own.
    zoo_names = {p.name for p in PRESETS.values() if p.source == "model zoo"}
    assert {p.name for p in presets} == {n for n in zoo_names if "_stage" not in n}
    assert len(presets) == len({p.name for p in presets})
    # 16 of VOC and Cityscapes (of which two are 8-bit), 2 of ADE20K, 6 backbones.
    assert len(ZOO) == len({c.archive for c in ZOO.values()}) == 16 + 2 + 6


def test_checkpoints_have_the_classes_of_their_dataset():
    for checkpoint in ZOO.values():
        if checkpoint.info:
            for preset in checkpoint.evaluations:
                assert preset.model.num_classes == checkpoint.info.num_classes
    assert ZOO["xception65_ade20k_train"].info.class_names[1] == "wall"
    backbones = [name for name, c in ZOO.items() if c.info is None]
    assert backbones == [name for name, c in ZOO.items() if c.is_pretrained_backbone]
    assert all("_imagenet" in name for name in backbones)


def test_archive_url_is_official_or_a_mirror(monkeypatch):
    monkeypatch.delenv("DEEPLAB_TF_ZOO", raising=False)
    archive = "deeplabv3_mnv2_pascal_trainval_2018_01_29.tar.gz"
    assert ZOO[REAL].url == (
        f"https://storage.googleapis.com/download.tensorflow.org/models/{archive}"
    )
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DEEPLAB_TF_ZOO", "~/zoo")
    assert ZOO[REAL].url == f"/home/someone/zoo/{archive}"
    monkeypatch.setenv("DEEPLAB_TF_ZOO", "file:///data/zoo/")
    assert ZOO[REAL].url == f"file:///data/zoo/{archive}"


def test_checkpoint_is_found_by_preset_name():
    assert (
        find_checkpoint("xception65_coco_voc_trainaug").preset.eval_output_stride == 16
    )
    checkpoint, preset = find_checkpoint("edgetpu_deeplab_slim_os16")
    assert checkpoint.name == "EdgeTPU-DeepLab-slim"
    assert (preset.model.output_stride, checkpoint.preset.model.output_stride) == (
        16,
        32,
    )
    assert (
        find_checkpoint("xception_65_coco").checkpoint.name
        == "xception_65_imagenet_coco"
    )
    assert find_checkpoint("deeplabv3_table4_os16") is None
    with pytest.raises(UserError, match=r"xception65_ade20k; similar: xception65_a"):
        require_checkpoint("xception65_ade20k")
    require_checkpoint("xception65_ade20k_train")


def test_list_shows_scores_and_protocols():
    lines = "\n".join(describe_zoo().values()).splitlines()
    first = lines.index(
        "xception65_coco_voc_trainaug (deeplabv3_pascal_train_aug_2018_01_04.tar.gz)"
    )
    assert lines[first + 1 : first + 3] == [
        "  pascal_voc_seg val, output stride 16: mIoU 82.2%, 54.17 B multiply-adds",
        "  pascal_voc_seg val, output stride 8, 6 scales, flipped: mIoU 83.58%, "
        "3055.35 B multiply-adds",
    ]
    assert "  ade20k val, output stride 16: mIoU 32.04%, pixel accuracy 75.41%" in lines
    assert "  xception_71 pretrained on ImageNet" in lines


def test_module_prints_the_list():
    command = [sys.executable, "-m", "deeplab_tf.checkpoints.zoo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    expected = "\n".join(describe_zoo().values()).splitlines()
    assert (result.stdout.splitlines(), result.stderr) == (expected, "")


def simplify(config):
    """Drops what golden cases vary: classes, output stride, size of pooling."""
    fields = {"image_pooling_crop_size": None, "image_pooling_stride": (1, 1)}
    context = dataclasses.replace(config.at_output_stride(16).context, **fields)
    # A decoder that sums has no such convolution.
    separable = config.decoder.separable or config.decoder.sum_merge
    decoder = dataclasses.replace(config.decoder, separable=separable)
    parts = {"context": context, "decoder": decoder}
    return dataclasses.replace(config.at_output_stride(16), num_classes=2, **parts)


def test_page_states_which_checkpoints_have_golden_cases():
    names = [path.stem for path in FOLDER.glob("*.npz") if path.stem != "preprocess"]
    flags = [GoldenCase.load(name).flags for name in names]
    golden = [simplify(ModelConfig.from_official_flags(each)) for each in flags]
    backbones = {config.backbone for config in golden}
    found = {
        name
        for name, checkpoint in ZOO.items()
        if simplify(checkpoint.preset.model) in golden
        or (checkpoint.info is None and checkpoint.preset.model.backbone in backbones)
    }
    # tests/checkpoints/test_official_files.py has a frozen graph of it.
    found |= {"mobilenetv3_small_cityscapes_trainfine"}
    assert found == {
        name
        for name in ZOO
        if page.VERIFIED.get(name, "outputs") in ("outputs", "scores")
    }
    assert [n for n, what in page.VERIFIED.items() if what == "scores"] == [REAL]
    assert set(page.VERIFIED) < set(ZOO)


def test_page_needs_a_checkout(tmp_path):
    command = [sys.executable, "-m", "deeplab_tf.checkpoints.zoo", "--markdown"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "zoo: --markdown needs a checkout; there is no "
        "benchmarks/results/zoo_time.json\n"
    )


def run_benchmark(records, cache, *arguments):
    options = (f"--dataset_dir={records}", f"--cache_dir={cache}")
    return program_runs.run("benchmarks.model_zoo", *options, *arguments).splitlines()


def test_benchmark_names_skipped_evaluations(
    tiny_zoo, tiny_records, tmp_path, eager_execution
):
    rows = run_benchmark(tiny_records, tmp_path, "--checkpoints=tiny", "--images=1")
    header = "checkpoint and protocol split images per cent ours published"
    assert rows[0].split() == header.split()
    name, split, images, measure, ours, published, difference = rows[1].split()
    assert (name, split, images, measure) == ("tiny", "val", "1", "miou")
    assert published == "75.32"
    assert float(difference) == pytest.approx(float(ours) - 75.32, abs=0.011)
    assert rows[2].startswith("tiny_test") and "has no records named test-" in rows[2]


def test_benchmark_follows_the_protocol_of_the_preset(
    tiny_zoo, tiny_records, tmp_path, eager_execution
):
    """Compares with output stride 8, two scales, flips and resizing set by hand."""
    data = dataclasses.replace(
        ZOO["tiny"].preset.data,
        dataset_dir=tiny_records,
        batch_size=1,
        min_resize_value=49,
        max_resize_value=97,
        resize_factor=16,
    )
    config = EvalConfig((0.5, 1.5), add_flipped_images=True, eval_crop_size=(65, 97))
    expected = evaluate(
        from_pretrained("tiny", output_stride=8, cache_dir=str(tmp_path)),
        load_dataset(data, "val", training=False).take(1),
        config,
    )
    protocol = ZOO["tiny"].evaluations[-1]
    values = types.SimpleNamespace(
        dataset_dir=tiny_records, cache_dir=str(tmp_path), images=1
    )
    found = model_zoo.score(ZOO["tiny"], protocol, "val", values)
    assert found["images"] == expected["images"] == 1
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    # A single predicted class would match under any protocol.
    assert np.count_nonzero(np.sum(expected["confusion_matrix"], 0)) > 2


@pytest.mark.parametrize("images", ["0", "-1"])
def test_benchmark_needs_a_positive_number_of_images(tiny_records, images):
    with pytest.raises(SystemExit, match=r"--images=-?\d: .*positive"):
        run_benchmark(tiny_records, "unused", f"--images={images}")


def test_benchmark_refuses_checkpoints_it_cannot_score(
    tiny_zoo, tiny_records, tmp_path
):
    program_runs.assert_refused(
        r"--checkpoints=xception65_ade20k_train is not a zoo checkpoint of pascal",
        "benchmarks.model_zoo",
        f"--dataset_dir={tiny_records}",
        "--checkpoints=xception65_ade20k_train",
    )
    program_runs.assert_refused(
        "no checkpoint of pascal_voc_seg in the zoo could be scored",
        "benchmarks.model_zoo",
        f"--dataset_dir={tiny_records}",
        f"--cache_dir={tmp_path}",
        "--checkpoints=mobilenetv2_dm05_coco_voc_trainaug",  # not in this zoo
    )


@pytest.mark.slow
def test_benchmark_scores_the_official_checkpoint(
    voc_checkpoint, voc_records, tmp_path, monkeypatch
):
    add_real_checkpoint(monkeypatch, tmp_path, os.path.dirname(voc_checkpoint))
    options = (f"--checkpoints={REAL}", "--eval_split=val", "--images=1")
    row = run_benchmark(voc_records, tmp_path, *options)[1].split()
    assert row[:4] == [REAL, "val", "1", "miou"]
    assert float(row[4]) > 40
    assert row[5] == "80.25"
    assert row[7:] == ["published:", "test"]
