"""The memory of a training does not grow with its steps.

    python tests/training/test_memory.py RECORDS FOLDER LEAK

trains 2,000 steps and prints the memory of the process at each evaluation as JSON; LEAK
is the number of bytes that each step leaks on purpose.
"""

import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, EVERY = 2000, 250
# After the first evaluation, which compiles and loads much.
FIRST = 500
# 3.3 and 3.4 MiB were measured; 10 KiB a step made 18.0.
BOUND = 8 * 2**20


def resident_bytes() -> int:
    """Returns the resident bytes of this process after freeing unused memory."""
    # Plots contain reference cycles, which are rarely collected.
    gc.collect()
    # The allocator keeps tens of MiB of freed memory, which would hide a leak.
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(records: str, folder: str, leak: int) -> None:
    import deeplab_tf.programs  # noqa: F401  (TensorFlow without its notices)

    # isort: split
    from deeplab_tf import (
        ContextConfig,
        DataConfig,
        DecoderConfig,
        ModelConfig,
        TrainConfig,
        Trainer,
        build_model,
        load_dataset,
    )
    from deeplab_tf.training.reporter import Validation

    model = build_model(
        ModelConfig(
            backbone="mobilenet_v3_small_seg",
            depth_multiplier=0.1,
            context=ContextConfig(rates=(), filters=16),
            decoder=DecoderConfig(output_strides=()),
        )
    )
    config = TrainConfig(
        training_number_of_steps=STEPS,
        train_logdir=folder,
        save_interval_steps=200,
        eval_interval_steps=EVERY,
    )
    memory, leaked = {}, []

    def measure_and_load(worker, num_workers):
        leaked.extend(bytearray(os.urandom(leak)) for _ in range(EVERY if leak else 0))
        memory[trainer.step] = resident_bytes()
        return load_dataset(DataConfig(records, batch_size=1), "val", training=False)

    trainer = Trainer(model, config)
    data = DataConfig(records, crop_size=(33, 33), batch_size=2)
    trainer.train(
        load_dataset(data, "train", training=True), Validation(measure_and_load)
    )
    print(json.dumps(memory))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("leak", [0, 10 * 2**10])
def test_training_does_not_leak_memory(leak, tiny_records, tmp_path):
    # One heap: otherwise each thread of an evaluation allocates another.
    environment = {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    process = subprocess.run(
        [sys.executable, __file__, tiny_records, tmp_path / "logs", str(leak)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    memory = json.loads(process.stdout.splitlines()[-1])
    growth = memory[str(STEPS)] - memory[str(FIRST)]
    assert (growth > BOUND) == bool(leak), f"{growth / 2**20:.1f} MiB more: {memory}"


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]))
