"""Handles SIGTERM, SIGHUP and Ctrl-C: the first asks to stop, the second kills."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

# Windows has no SIGHUP.
_HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = [n for n in (signal.SIGTERM, signal.SIGINT, _HANGUP) if n is not None]


class Interrupted(SystemExit):
    """Exits with the status for a signal, 128 plus its number.

    `checkpoint` is the prefix of the checkpoint saved on the signal, if any.
    """

    def __init__(self, number: int, checkpoint: str | None = None):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.checkpoint = checkpoint


class Interruption:
    """Context manager that stores the first signal received in `signal`.

    If SIGHUP was ignored, as under nohup, it stays ignored.
    """

    def __init__(self):
        self.signal = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        numbers = [n for n in _SIGNALS if n != _HANGUP or not _is_ignored(n)]
        self._stack.enter_context(_handle_first_signal(self._store_signal, numbers))
        return self

    def _store_signal(self, number: int) -> None:
        self.signal = number

    def __exit__(self, *error) -> None:
        self._stack.close()

    @property
    def exit_status(self) -> int:
        """Exit status of a program stopped by the signal."""
        return Interrupted(self.number).code

    @property
    def number(self) -> int:
        """Number of the signal; SIGTERM if another worker received it."""
        return self.signal or signal.SIGTERM


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raises `Interrupted` at the first signal that is not ignored."""

    def interrupt(number: int) -> None:
        raise Interrupted(number)

    with _handle_first_signal(interrupt, [n for n in _SIGNALS if not _is_ignored(n)]):
        yield


@contextlib.contextmanager
def _handle_first_signal(
    handle: Callable[[int], None], numbers: list[int]
) -> Iterator[None]:
    """Handles the first of these signals; a second one has its default action."""
    before = {}

    def handle_once(number, frame) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        handle(number)

    # Python allows signal handlers in the main thread only.
    is_main = threading.current_thread() is threading.main_thread()
    try:
        for number in numbers if is_main else ():
            # Stored first, because the signal may arrive right after `signal.signal`.
            before[number] = signal.getsignal(number) or signal.SIG_DFL
            signal.signal(number, handle_once)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
