"""Runs a contender in a process that `benchmarks.measuring` starts.

    python -m benchmarks.worker MODULE:FUNCTION ARGUMENTS

The function, by default one of `benchmarks.contenders`, returns a function that runs
one turn. The worker answers each line on stdin with a line of JSON on stdout: first,
after warm-up turns, the contender's `properties` and the memory before them; then the
seconds and the peak memory of each turn. Output of libraries goes to stderr.
"""

import importlib
import json
import os
import sys
import time

from deeplab_tf.memory import peak_bytes

_WARM_UP_TURNS = 2


def _prepare(factory: str, arguments: dict) -> tuple:
    """Returns the warmed-up turn function and its properties."""
    module, _, name = f"benchmarks.contenders:{factory}".rpartition(":")
    module = module.rpartition(":")[2]
    run_turn = getattr(importlib.import_module(module), name)(**arguments)
    answer = {"ready_mebibytes": peak_bytes() / 2**20}
    for _ in range(_WARM_UP_TURNS):
        run_turn()
    return run_turn, answer | getattr(run_turn, "properties", {})


def _measure_turn(run_turn) -> dict[str, float]:
    """Returns wall-clock and CPU seconds of a turn, and peak memory in MiB."""
    clock, processors = time.perf_counter(), time.process_time()
    run_turn()
    return {
        "clock": time.perf_counter() - clock,
        "processors": time.process_time() - processors,
        "mebibytes": peak_bytes() / 2**20,
    }


def main() -> None:
    """Reads commands from stdin and answers each on stdout."""
    # Libraries print notices to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run_turn = None
    for _ in sys.stdin:
        if run_turn is None:
            run_turn, answer = _prepare(sys.argv[1], json.loads(sys.argv[2]))
        else:
            answer = _measure_turn(run_turn)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
