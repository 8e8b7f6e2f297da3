"""What is noticed while a record is made, such as overlapping masks.

Records are made in threads or on other machines. What their labels show therefore
travels with them, and is counted where they arrive, in order.
"""

import contextlib
import contextvars
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from deeplab_tf.errors import pluralize

_FOUND: contextvars.ContextVar[list | None] = contextvars.ContextVar(
    "found", default=None
)


def add(finding: Any) -> None:
    """Adds a finding to the record that this thread makes, if any.

    A finding can be pickled: a note for `Tally`, or a value for the `Labels` that made
    it.
    """
    found = _FOUND.get()
    if found is not None:
        found.append(finding)


@contextlib.contextmanager
def collect() -> Iterator[list]:
    """Collects the findings of this thread."""
    found: list = []
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)


class Labels(Protocol):
    """Labels of a conversion, whose reader adds findings."""

    def add(self, finding: Any) -> None:
        """Counts a finding; raises UserError if it contradicts an earlier one."""

    def report(self) -> None:
        """Prints lines about the findings, if any."""


class Tally:
    """Counts notes about images, and passes other findings to the labels."""

    def __init__(self, labels: Labels | None = None):
        self._labels = labels
        self._notes: Counter[str] = Counter()

    def add(self, finding: Any) -> None:
        """Counts a note or another finding."""
        if isinstance(finding, str):
            self._notes[finding] += 1
        elif self._labels:
            self._labels.add(finding)

    def report(self) -> None:
        """Prints one line for each note."""
        for note, count in sorted(self._notes.items()):
            print(pluralize(count, f"image(s) {note}"))
