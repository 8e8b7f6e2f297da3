"""Describes the health of a worker in one line, for its log."""

import time

from deeplab_tf.memory import peak_bytes
from deeplab_tf.training.distribution import Worker

_INTERVAL = 60  # seconds


class Health:
    """Measures a worker's throughput and CPU use since its previous line.

    All workers take the same time per step. Those with few busy cores wait for the
    data, or for a slower worker.
    """

    def __init__(self, worker: Worker):
        self._worker = worker
        self._last: tuple[float, float, int] | None = None

    def describe(self, step: int, samples: int) -> str | None:
        """Returns a line after a step, at most once a minute; None otherwise.

        `samples` is the number of samples that all workers have consumed.
        """
        if self._worker.count == 1:
            return None
        now, busy = time.monotonic(), time.process_time()
        last = self._last
        # The first step compiles.
        if last is not None and now - last[0] < _INTERVAL:
            return None
        self._last = (now, busy, samples)
        text = f"worker {self._worker.index + 1} of {self._worker.count}: step {step:,}"
        if last is not None:
            seconds = now - last[0]
            text += (
                f", {(samples - last[2]) / seconds:.1f} images/s by all workers, "
                f"{(busy - last[1]) / seconds:.1f} cores busy"
            )
        return f"{text}, peak memory {peak_bytes() / 2**20:,.0f} MiB"
