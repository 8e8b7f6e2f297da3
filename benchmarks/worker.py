"""The process of a contender, which `benchmarks.measuring` starts.

    python -m benchmarks.worker MODULE:FUNCTION ARGUMENTS

The function, by default one of `benchmarks.contenders`, returns the work of a turn.
Each line on stdin is answered with a line of JSON on stdout: the first, after some
turns to warm up, with the attribute `properties` of the work and the memory before it;
later ones with the seconds of a turn and the peak memory. What libraries print goes to
stderr.
"""

import importlib
import json
import os
import sys
import time

from deeplab_tf.memory import peak_bytes

_WARM_UP = 2  # turns


def _prepare(factory: str, arguments: dict) -> tuple:
    """Returns the work of a factory, warmed up, and what is reported of it."""
    module, _, name = f"benchmarks.contenders:{factory}".rpartition(":")
    module = module.rpartition(":")[2]
    work = getattr(importlib.import_module(module), name)(**arguments)
    answer = {"ready_mebibytes": peak_bytes() / 2**20}
    for _ in range(_WARM_UP):
        work()
    return work, answer | getattr(work, "properties", {})


def _time(work) -> dict[str, float]:
    """Returns the seconds of a turn, and the most memory so far."""
    clock, processors = time.perf_counter(), time.process_time()
    work()
    return {
        "clock": time.perf_counter() - clock,
        "processors": time.process_time() - processors,
        "mebibytes": peak_bytes() / 2**20,
    }


def main() -> None:
    """Serves stdin."""
    # Libraries write notices to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = None
    for _ in sys.stdin:
        if work is None:
            work, answer = _prepare(sys.argv[1], json.loads(sys.argv[2]))
        else:
            answer = _time(work)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
