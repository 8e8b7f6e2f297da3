"""Training on several workers survives kills and a change of their number."""

import json
import pathlib
import random
import re
import shutil
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


def script(name, *arguments):
    return (sys.executable, ROOT / f"tests/{name}.py", *arguments)


def train(commands, folder):
    """Trains with one worker per command until all succeed; returns their output."""
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


def test_number_of_workers_may_change(tiny_records, tmp_path):
    """Four, three and again four workers train like a single process."""

    def run(count, logs, steps):
        train(count * [script("elastic_training", tiny_records, logs, steps)], tmp_path)

    logs, expected = tmp_path / "logs", tmp_path / "expected"
    for count, steps in ((4, 6), (3, 12), (4, 18)):
        run(count, logs, steps)
    run(1, expected, 18)
    losses = read_losses(logs)
    assert losses == pytest.approx(read_losses(expected), rel=1e-4)
    assert list(losses) == list(range(1, 19)) and losses[18] < losses[1]


def start(commands, tf_configs, folder):
    """Runs each worker once; returns statuses, seconds and error lines."""
    began = time.monotonic()
    run = ("bash", "-c", '"$@"; echo "exits with $?" >&2', "worker")
    with restarted([(*run, *c) for c in commands], tf_configs, folder) as workers:
        for worker in workers:
            wait_until(lambda: "exits with" in worker.log.read_text(), workers, 200)  # noqa: B023
        texts = [worker.log.read_text() for worker in workers]
    assert all("exits with 1" in text for text in texts), texts
    assert not any("Traceback" in text for text in texts)
    lines = [re.findall(r"train\.py: (.*)", text) for text in texts]
    return time.monotonic() - began, lines


@pytest.mark.parametrize("kind", ["flag", "records", "workers"])
def test_different_worker_is_named_within_a_minute(kind, tiny_records, tmp_path):
    commands = 2 * [command(tiny_records, tmp_path / "logs")]
    configs, problem = cluster_configs(2), "worker 2 has --seed 3, but worker 1 "
    if kind == "flag":
        commands[1] += ("--seed=3",)
    elif kind == "records":
        other = pathlib.Path(shutil.copytree(tiny_records, tmp_path / "other"))
        for shard in other.glob("trainval-*"):
            shard.rename(shard.with_name(shard.name.replace("trainval", "train")))
        problem = "worker 2 has records "
        commands[1] = command(other, tmp_path / "logs")
    else:
        more = cluster_configs(1)[0]["cluster"]["worker"]
        workers = configs[0]["cluster"]["worker"] + more
        configs[1]["cluster"] = {"worker": workers}
        problem = "worker 2 has TF_CONFIG with a cluster size of 3, but worker 1 "
    seconds, lines = start(commands, configs, tmp_path)
    assert lines[0] == lines[1] and len(lines[0]) == 1
    assert lines[0][0].startswith(problem)
    assert seconds < 90  # most of them to import TensorFlow
    assert not (tmp_path / "logs").exists()


def test_missing_worker_is_named_within_a_minute(tiny_records, tmp_path):
    configs = cluster_configs(2)
    commands = [command(tiny_records, tmp_path / "logs")]
    seconds, lines = start(commands, configs[:1], tmp_path)
    address = configs[0]["cluster"]["worker"][1]
    assert lines[0][0].startswith(f"worker 2 ({address}) did not connect within 50 s;")
    assert seconds < 90
