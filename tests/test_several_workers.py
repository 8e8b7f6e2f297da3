"""Training on several workers survives deaths, and changes of their number."""

import json
import random
import sys
import time

import pytest
from conftest import ROOT
from loopback import cluster_configs
from restarted_workers import restarted, wait_until
from test_interrupted_training import TRAINING, assert_identical, newest_step

pytestmark = pytest.mark.slow

STEPS = 40


def command(records, logs, *flags, steps=STEPS):
    paths = (f"--dataset_dir={records}", f"--train_logdir={logs}")
    # Synchronised statistics would triple the time to start.
    flags = (f"--training_number_of_steps={steps}", "--batch_norm=freeze", *flags)
    return (sys.executable, ROOT / "train.py", *paths, *TRAINING, *flags)


def train(commands, folder):
    """Trains with a worker per command, without restarts; returns their output."""
    with restarted(commands, cluster_configs(len(commands)), folder) as workers:
        assert [worker.loop.wait(600) for worker in workers] == len(commands) * [0]
        return [worker.log.read_text() for worker in workers]


def read_losses(logs):
    rows = map(json.loads, (logs / "history.jsonl").read_text().splitlines())
    return {row["step"]: row["data_loss"] for row in rows if "data_loss" in row}


def test_ten_kills_end_in_the_bits_of_an_uninterrupted_run(tiny_records, tmp_path):
    """Three workers share batches of four unevenly: 1, 1 and 2 images."""
    expected, logs = tmp_path / "expected", tmp_path / "logs"
    texts = train(3 * [command(tiny_records, expected)], tmp_path)
    assert all("restarts" not in text for text in texts)
    seed = random.randrange(1000)
    rng = random.Random(seed)
    print("seed", seed)
    commands, kills = 3 * [command(tiny_records, logs)], []
    with restarted(commands, cluster_configs(3), tmp_path) as workers:
        while len(kills) < 10:
            before = newest_step(logs)
            # Half of the kills hit starting workers, half of them training ones.
            if len(kills) % 2:
                wait_until(lambda: newest_step(logs) > before, workers)  # noqa: B023
            time.sleep(rng.uniform(0, 3 if len(kills) % 2 else 15))
            victim = rng.randrange(3)
            if newest_step(logs) < STEPS and workers[victim].kill():
                kills.append((victim, newest_step(logs)))
        print(kills)
        assert [worker.loop.wait(600) for worker in workers] == [0, 0, 0]
        texts = [worker.log.read_text() for worker in workers]
    assert sum(text.count("restarts after status 137") for text in texts) == 10
    assert not any("Traceback" in text for text in texts)
    assert_identical(logs, expected)
