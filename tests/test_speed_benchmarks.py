"""The speed benchmarks from end to end, on a small scale."""

import json

import numpy as np
import pytest
from conftest import ROOT
from program_runs import assert_refused, run
from small_datasets import save_image, save_label

from benchmarks import inference, op_profile, zoo_time
from benchmarks.measuring import is_installed
from deeplab_tf.presets import PRESETS

HAS_TORCH = is_installed("torch")


def row_names(rows):
    return [row["name"] for row in rows]


@pytest.mark.slow
def test_inference_with_installed_engines(tmp_path):
    path = tmp_path / "result.json"
    small = ("--size=65,65", "--turns=2", "--times=1", "--scales=0.5,1")
    out = run(
        *("benchmarks.inference", "--model_variant=mobilenet_v2", *small),
        f"--json={path}",
    )
    found = json.loads(path.read_text())["backbones"]["mobilenet_v2"]
    engines = row_names(found["engines"])
    assert engines[:3] == ["float32", "all signatures", "bfloat16"]
    assert found["engines"][0]["first_label_seconds"] > 0
    for module, name in (("openvino", "openvino"), ("torch", "pytorch")):
        assert (name in engines) == (is_installed(module))
    assert all(row["milliseconds"] > 0 for row in found["engines"])
    assert row_names(found["scales"]) == ["separate passes", "combined"]
    assert out.count("times float32 (quartiles)") == 1
    assert "scales 0.5, 1, each also mirrored" in out


@pytest.mark.slow
def test_time_of_a_zoo_model_is_measured(tmp_path):
    path, preset = tmp_path / "result.json", "mobilenetv2_dm05_coco_voc_trainaug"
    out = run(
        *("benchmarks.zoo_time", f"--presets={preset}", "--turns=1"), f"--json={path}"
    )
    (row,) = json.loads(path.read_text())["rows"]
    assert row["preset"] == preset
    assert 0.01 < row["processor_seconds"] < 60
    assert f"| {preset} | " in out


@pytest.mark.slow
def test_committed_counts_of_the_zoo_are_current():
    committed = json.loads((ROOT / "benchmarks/results/zoo_time.json").read_text())
    found = [
        {"preset": n} | zoo_time.count(PRESETS[n]) for n in zoo_time.select_presets([])
    ]
    names = ("preset", "parameters", "multiply_adds")
    assert found == [{name: row[name] for name in names} for row in committed["rows"]]


def test_models_of_the_zoo_are_measured_once():
    names = zoo_time.select_presets([])
    # The 8-bit network is evaluated in floating point.
    assert "mobilenetv2_coco_voc_trainaug_8bit" not in names
    assert len(names) == 24
    assert_refused(
        "--presets=xception must be one of", "benchmarks.zoo_time", "--presets=xception"
    )


def test_unknown_engines_are_refused():
    assert_refused(
        "--engines=tensorrt must be one of",
        "benchmarks.inference",
        "--engines=tensorrt",
    )
    assert inference.select_engines(["bfloat16"]) == ["float32", "bfloat16"]


@pytest.mark.slow
def test_training_benchmark_runs_installed_frameworks(tmp_path):
    path = tmp_path / "result.json"
    out = run(
        *("benchmarks.train_step", "--cases=mobilenet_v2:65:2", "--turns=2"),
        *("--steps=1", "--leave_out=keras_hub", f"--json={path}"),
    )
    (rows,) = json.loads(path.read_text())["cases"].values()
    expected = ["float32", "bfloat16"] + HAS_TORCH * ["pytorch", "pytorch, NCHW"]
    assert row_names(rows) == expected
    assert all(row["images_per_second"] > 0 for row in rows)
    assert "mobilenet_v2, crop 65x65, batch 2, " in out


@pytest.mark.slow
def test_scaling_is_fitted_and_plotted(tmp_path):
    path, plot = tmp_path / "result.json", tmp_path / "scaling.png"
    out = run(
        *("benchmarks.scaling", "--sides=65,129", "--turns=2", f"--plot={plot}"),
        *("--train_crop_size=65", "--train_batch_size=4", f"--json={path}"),
    )
    found = json.loads(path.read_text())
    assert len(found["sizes"]["seconds"]) == 2
    assert row_names(found["processes"]) == ["one process", "two workers"]
    assert "two workers have " in out and plot.stat().st_size > 1000


@pytest.mark.slow
def test_workers_are_measured_and_predicted(tmp_path):
    path = tmp_path / "result.json"
    out = run(
        *("benchmarks.multi_worker", "--turns=1", "--train_crop_size=65"),
        f"--json={path}",
    )
    found = json.loads(path.read_text())
    pairs = [(row["processes"], row["images"]) for row in found["rows"]]
    assert pairs == [(1, 2), (1, 8), (2, 4), (2, 8), (4, 8)]
    assert all(row["milliseconds"] > 0 for row in found["rows"])
    # MobileNetV2 with ASPP: about 2.1 million parameters of four bytes.
    assert 8e6 < found["constants"]["gradient_bytes"] < 9e6
    assert [row[0] for row in found["clusters"]][::6] == ["8", "512"]
    assert "MB of gradients per step" in out


@pytest.mark.slow
def test_input_pipeline_is_compared_with_decoding(tiny_records, tmp_path):
    out = run(
        *("benchmarks.input_pipeline", f"--dataset_dir={tiny_records}"),
        *("--train_crop_size=65,65", "--train_batch_size=2", "--images=8"),
        *("--turns=2", "--training_steps=1"),
    )
    assert "training on records has " in out


@pytest.mark.slow
def test_input_service_is_measured_with_one_and_two_workers(tiny_records, tmp_path):
    path = tmp_path / "result.json"
    out = run(
        *("benchmarks.data_service", f"--dataset_dir={tiny_records}", "--turns=1"),
        *("--train_crop_size=65,65", "--train_batch_size=1", "--images=72"),
        *("--cores=0,0", f"--json={path}"),
    )
    found = json.loads(path.read_text())
    assert min(found[name] for name in ("local", "one_worker", "two_workers")) > 0
    assert "| two workers | " in out


def test_conversion_is_compared_with_pillow(tmp_path):
    path = tmp_path / "result.json"
    for name in "ab":
        save_image(tmp_path / f"images/{name}.jpg")
        save_label(tmp_path / f"masks/{name}.png", np.eye(20, 30, dtype=np.uint8))
    save_image(tmp_path / "images/without_mask.jpg")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    out = run(
        *("benchmarks.conversion", f"--image_dir={tmp_path}/images", "--turns=1"),
        *(f"--label_dir={tmp_path}/masks", f"--classes={tmp_path}/classes.txt"),
        f"--json={path}",
    )
    names = ["Pillow, asarray", "Pillow, load", "deeplab-convert folder"]
    assert row_names(json.loads(path.read_text())["rows"]) == names
    assert "times the throughput of Pillow, asarray" in out


def test_operations_are_summed_by_purpose():
    found = op_profile.sum_by_purpose(
        {
            "_MklNativeConv2D": (3.0, 1),
            "_MklNativeDepthwiseConv2dNative": (1.0, 2),
            "_MklNativeFusedBatchNormGradV3": (2.0, 1),
            "Conv2DBackpropFilter": (3.0, 1),
            "_MklMatMul": (1.0, 1),
            "_MklBatchMatMulV2": (0.75, 2),
            "AddN": (0.5, 7),
        }
    )
    assert found == {
        "convolutions": 7.0,
        "batch normalisation": 2.0,
        "depthwise convolutions": 1.0,
        "resizing": 0.75,
        "other": 0.5,
    }


@pytest.mark.slow
@pytest.mark.parametrize("what", ["training", "inference"])
def test_operation_times_are_recorded(what, tmp_path):
    path = tmp_path / "profile.json"
    out = run(
        *("benchmarks.op_profile", f"--what={what}", "--size=129,129", "--batch=2"),
        f"--json={path}",
    )
    sums = json.loads(path.read_text())["purposes"]
    shares = {name: value / sum(sums.values()) for name, value in sums.items()}
    convolutions = shares["convolutions"] + shares["depthwise convolutions"]
    assert 0.2 < convolutions < 1.0
    assert shares.get("other", 0.0) < 0.5
    assert "| convolutions | " in out
