"""Works for tests/test_measuring.py, each in a process of its own."""

import os
import pathlib
import time


def sleeper(seconds: float, log: str):
    """A work that sleeps, and notes when it began."""

    def work():
        with open(log, "a") as file:
            file.write(f"{os.environ.get('CONTENDER', '?')} {time.time()}\n")
        time.sleep(seconds)

    work.properties = {"cores": sorted(os.sched_getaffinity(0))}
    print("libraries print what they like")
    return work


def worker(folder: str):
    """A work that goes on only when two do it at the same time."""
    turn = 0

    def work():
        nonlocal turn
        turn += 1
        here = pathlib.Path(folder)
        (here / f"{os.environ['CONTENDER']}-{turn}").touch()
        until = time.monotonic() + 30
        while len(list(here.glob(f"*-{turn}"))) < 2:
            assert time.monotonic() < until, "the other one never came"
            time.sleep(0.01)

    return work


def broken():
    """A factory that fails."""
    raise ImportError("no module named an_engine")


def breaking():
    """A work that fails once it is measured."""
    turn = 0

    def work():
        nonlocal turn
        turn += 1
        if turn > 2:
            raise MemoryError("out of memory in turn 3")

    return work
