"""Workloads for tests/test_measuring.py; each runs in its own process."""

import os
import pathlib
import time


def make_sleeper(seconds: float, log: str):
    """Returns a workload that sleeps, and logs when it starts."""

    def workload():
        with open(log, "a") as file:
            file.write(f"{os.environ.get('CONTENDER', '?')} {time.time()}\n")
        time.sleep(seconds)

    workload.properties = {"cores": sorted(os.sched_getaffinity(0))}
    print("libraries print what they like")
    return workload


def make_synchronised(folder: str):
    """Returns a workload that finishes only when two processes run it together."""
    turn = 0

    def workload():
        nonlocal turn
        turn += 1
        path = pathlib.Path(folder)
        (path / f"{os.environ['CONTENDER']}-{turn}").touch()
        deadline = time.monotonic() + 30
        while len(list(path.glob(f"*-{turn}"))) < 2:
            assert time.monotonic() < deadline, "the other process never started"
            time.sleep(0.01)

    return workload


def fail_to_build():
    """Fails as a factory."""
    raise ImportError("no module named an_engine")


def make_failing():
    """Returns a workload that fails after the warm-up."""
    turn = 0

    def workload():
        nonlocal turn
        turn += 1
        if turn > 2:
            raise MemoryError("out of memory in turn 3")

    return workload
