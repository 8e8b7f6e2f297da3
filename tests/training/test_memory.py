"""A training keeps nothing of the steps that it has done.

    python tests/training/test_memory.py RECORDS FOLDER LEAK

trains 2,000 steps and prints what the process holds at every evaluation, as JSON; LEAK
is how many bytes a step is to lose on purpose.
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
# Behind the first evaluation, which compiles and loads much.
FIRST = 500
# 3.3 and 3.4 MiB were measured; 10 KiB a step made 18.0.
BOUND = 8 * 2**20


def resident() -> int:
    """Returns the bytes that this process holds and still needs."""
    # Pictures are drawn with cycles, which wait for a collection that is rare.
    gc.collect()
    # What was freed is kept for later, tens of MiB in which a leak would hide.
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
    held, lost = {}, []

    def evaluated(worker, num_workers):
        lost.extend(bytearray(os.urandom(leak)) for _ in range(EVERY if leak else 0))
        held[trainer.step] = resident()
        return load_dataset(DataConfig(records, batch_size=1), "val", training=False)

    trainer = Trainer(model, config)
    data = DataConfig(records, crop_size=(33, 33), batch_size=2)
    trainer.train(load_dataset(data, "train", training=True), Validation(evaluated))
    print(json.dumps(held))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("leak", [0, 10 * 2**10])
def test_a_training_does_not_grow_unless_it_leaks(leak, tiny_records, tmp_path):
    # One heap: threads come and go with every evaluation, and each takes another one.
    environment = {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(
        [sys.executable, __file__, tiny_records, tmp_path / "logs", str(leak)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    held = json.loads(ended.stdout.splitlines()[-1])
    growth = held[str(STEPS)] - held[str(FIRST)]
    assert (growth > BOUND) == bool(leak), f"{growth / 2**20:.1f} MiB more: {held}"


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]))
