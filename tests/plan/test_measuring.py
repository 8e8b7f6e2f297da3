"""Measured steps and the recommended batch size."""

import json

import pytest
from program_runs import assert_refused, run

from deeplab_tf import memory
from deeplab_tf.config import ModelConfig, TrainConfig
from deeplab_tf.plan import measuring
from deeplab_tf.plan.measuring import Cell, Measurement

MODEL = ModelConfig("mobilenet_v2", num_classes=3, depth_multiplier=0.1)
CROP = (33, 33)


def measurement(images, mebibytes, seconds=1.0, **cell):
    return Measurement(Cell(CROP, 16, images, **cell), mebibytes, 5.0, seconds)


def test_memory_is_extrapolated_linearly():
    two, four = measurement(2, 1000.0), measurement(4, 1400.0)
    assert measuring.predict_mebibytes([two, four], 16) == 1400 + 12 * 200
    assert measuring.predict_mebibytes([two], 16) is None


def test_largest_fitting_divisor_of_batch_is_selected():
    measurements = [
        measurement(2, 1000.0),
        measurement(3, 1100.0),
        measurement(4, 1400.0),
    ]
    assert measuring.select_largest(measurements, 8, 10_000).cell.images == 4
    assert measuring.select_largest(measurements, 9, 10_000).cell.images == 3
    # At most 90% of the memory may be used.
    assert measuring.select_largest(measurements, 8, 1500).cell.images == 2
    assert measuring.select_largest(measurements, 8, 1000) is None
    assert measuring.select_largest(measurements, 7, 10_000) is None


def test_training_command_has_the_measured_settings():
    plain = measuring.training_flags(measurement(8, 1.0), 8)
    assert plain == [
        "--train_crop_size=33,33",
        "--output_stride=16",
        "--train_batch_size=8",
    ]
    memory_saving = measurement(2, 1.0, precision="bfloat16", jit="on", recompute=True)
    assert measuring.training_flags(memory_saving, 8)[3:] == [
        *("--accumulate_steps=4", "--precision=bfloat16", "--jit=on", "--recompute")
    ]


def test_step_is_measured(shallow):
    one = measuring.measure(Cell(CROP, 16, 2), MODEL, TrainConfig(), steps=2)
    assert one.compile_seconds > one.step_seconds > 0
    assert one.images_per_second == 2 / one.step_seconds
    assert 0 < one.mebibytes <= memory.peak_bytes() / 2**20


def test_memory_of_process_and_machine_is_read():
    before = memory.peak_bytes()
    buffer = bytearray(b"x") * (64 << 20)
    assert memory.peak_bytes() >= memory.resident_bytes() >= len(buffer)
    assert before <= memory.peak_bytes() < memory.machine_bytes()


@pytest.mark.slow
def test_plan_is_printed_and_written(tmp_path):
    path = tmp_path / "plan.json"
    flags_of_model = ("--model_variant=mobilenet_v3_small_seg", "--crop_sizes=33,33x65")
    out = run(
        *(
            "deeplab_tf.plan.program",
            *flags_of_model,
            "--steps=1",
            "--train_batch_size=8",
        ),
        *("--batch_sizes=1,2", f"--json={path}"),
    )
    flags = "--train_crop_size=33,33 --output_stride=16 --train_batch_size=8 "
    assert f"\n{flags}--accumulate_steps=4" in out
    found = json.loads(path.read_text())
    cells = [
        (one["cell"]["crop_size"], one["cell"]["images"]) for one in found["measured"]
    ]
    assert cells == [([33, 33], 1), ([33, 33], 2), ([33, 65], 1), ([33, 65], 2)]
    assert found["recommended"]["flags"][2] == "--train_batch_size=8"
    # TensorFlow alone needs more than that.
    assert_refused(
        "training on 33x33 crops at output stride 16 does not fit into 92 MiB, "
        "even with --recompute",
        *("deeplab_tf.plan.program", *flags_of_model, "--steps=1", "--batch_sizes=2"),
        "--memory_gib=0.1",
    )


def test_invalid_flags_are_refused():
    program = ("deeplab_tf.plan.program", "--model_variant=mobilenet_v2")
    assert_refused(
        "--crop_sizes takes sides .* '5x5x5'", *program, "--crop_sizes=5x5x5"
    )
    assert_refused("--batch_sizes needs positive numbers", *program, "--batch_sizes=0")
    assert_refused("output_stride", *program, "--output_strides=7")
