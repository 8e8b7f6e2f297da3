"""What a training run prints about its progress."""

import time

import numpy as np

from deeplab_tf.config import TrainConfig
from deeplab_tf.data.info import generic_info
from deeplab_tf.training.distribution import Worker
from deeplab_tf.training.reporter import Reporter


def test_expected_time_is_printed_once_after_the_first_steps(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    config = TrainConfig(training_number_of_steps=1000)
    calls = ((0, 1, 90.0), (1, 1, 94.0), (2, 5, 114.0), (7, 9, 150.0))
    with Reporter(config, generic_info(2), Worker(), None) as reporter:
        # The first step compiles for 90 s, which does not count; then 4 s per step.
        for step, count, clock[0] in calls:
            reporter.log_steps(step, np.zeros((count, 3)), np.zeros((3, 2)), step)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "per step" in x]
    # 993 steps of 4 s are 66.2 minutes.
    expected = "step 7: 4.00 s per step, about 66 minutes left without evaluations"
    assert line == expected


def test_each_worker_prints_its_health_once_a_minute(monkeypatch, capsys):
    clock, busy = [0.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: busy[0])
    config = TrainConfig(training_number_of_steps=1000)
    with Reporter(config, generic_info(2), Worker(1, 3), None) as reporter:
        for step, clock[0], busy[0] in ((0, 90, 80), (1, 120, 95), (2, 190, 130)):
            rows = np.zeros((1, 3))
            reporter.log_steps(step, rows, np.zeros((3, 2)), 8 * (step + 1))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("worker 2 of 3: step 1, peak memory ")
    # 16 images in 100 s, 50 s of CPU time.
    expected = (
        "worker 2 of 3: step 3, 0.2 images/s by all workers, 0.5 cores busy, peak"
    )
    assert second.startswith(expected) and second.endswith(" MiB")
