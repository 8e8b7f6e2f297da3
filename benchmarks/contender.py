"""The process of a contender of `benchmarks.measuring`, which starts it.

    python -m benchmarks.contender MODULE:FUNCTION ARGUMENTS

On each line of stdin it works and answers with a line of JSON: the first time, after
some turns that warm up, with what the work tells of itself and the memory before them;
then with the seconds of a turn and the most memory so far. Whatever libraries print
goes to stderr.
"""

import importlib
import json
import os
import sys
import time

from deeplab_tf.memory import peak_bytes

_WARM_UP = 2  # turns


def serve(factory: str, arguments: dict, requests, answers) -> None:
    """Answers every request for a turn.

    Args:
        factory: `module:function` that returns the work of a turn; what it has as an
            attribute `facts` is told once.
        arguments: Of the factory.
        requests: Lines.
        answers: File of the answers.
    """
    module, _, name = factory.partition(":")
    work = None
    for _ in requests:
        if work is None:
            work = getattr(importlib.import_module(module), name)(**arguments)
            answer = {"ready_mebibytes": peak_bytes() / 2**20}
            for _ in range(_WARM_UP):
                work()
            answer |= getattr(work, "facts", {})
        else:
            start = time.perf_counter(), time.process_time()
            work()
            answer = {
                "clock": time.perf_counter() - start[0],
                "processors": time.process_time() - start[1],
                "mebibytes": peak_bytes() / 2**20,
            }
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serves stdin."""
    # Libraries write notices to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
