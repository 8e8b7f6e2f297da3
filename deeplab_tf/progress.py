"""Progress bars; without a terminal, a line every 30 seconds instead."""

import os
import time
from typing import Any

from tqdm import tqdm

# Seconds between two lines, by default.
_INTERVAL = 30.0
_LINE = "{{desc}}: {{n_fmt}}{total} {{unit}}, {{elapsed}} elapsed{left}{postfix}"


class ProgressBar(tqdm):
    """A bar of tqdm that suits log files too.

    Takes the arguments of tqdm. If stderr is not a terminal, it prints a line every 30
    seconds (or TQDM_MININTERVAL, a variable of tqdm), and a last one if it printed any
    before.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._shown_at: float | None = None
        self._shown_count: int | None = None
        self._began = time.monotonic()
        self._interval = float(os.environ.get("TQDM_MININTERVAL", _INTERVAL))
        super().__init__(*args, **kwargs)

    @property
    def _is_log(self) -> bool:
        return not self.fp.isatty()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Displays the bar, or prints a line if one is due."""
        if not self._is_log:
            return super().display(msg, pos)
        now = time.monotonic()
        if now - (self._shown_at or self._began) >= self._interval:
            self._print_line()
            self._shown_at = now
        return False

    def clear(self, nolock: bool = False) -> None:
        """Clears the bar on a terminal."""
        if not self.disable and not self._is_log:
            super().clear(nolock)

    def close(self) -> None:
        """Leaves the complete bar on a terminal, or prints the last line."""
        if not self.disable and self._is_log:
            if self._shown_at is not None and self._shown_count != self.n:
                self._print_line()
            self.leave = False
        super().close()

    def _print_line(self) -> None:
        """Prints the state as a line of a log, with the time left once it is known."""
        state = self.format_dict
        # The rate of the first training step is too low: TensorFlow traces the model.
        has_rate = self.total and self.n - self.initial > 1
        template = _LINE.format(
            total="/{total_fmt}" if self.total else "",
            left=", {remaining} left" if has_rate else "",
            postfix="{postfix}" if self.postfix else "",
        )
        line = self.format_meter(**state | {"bar_format": template})
        self.fp.write(f"{line}\n")
        self.fp.flush()
        self._shown_count = self.n
