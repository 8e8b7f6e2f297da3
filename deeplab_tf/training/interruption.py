"""SIGTERM and Ctrl-C: a training is asked to end, not cut off."""

import signal
import threading


class Interruption:
    """Notes the first SIGTERM or SIGINT while it is entered; a second one ends it.

    Attributes:
        signal: Number of the signal, None as long as there was none.
    """

    def __init__(self):
        self.signal = None
        self._before = {}

    def __enter__(self) -> "Interruption":
        # Python runs handlers in the main thread only, and lets no other set them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def __exit__(self, *error) -> None:
        self._restore()

    @property
    def exit_status(self) -> int:
        """What a program ended by the signal returns.

        143, that of SIGTERM, where another worker has had it.
        """
        return 128 + (self.signal or signal.SIGTERM)
