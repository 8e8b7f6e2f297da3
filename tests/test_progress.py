"""Progress bars on terminals and in log files."""

import io
import re

import pytest

from deeplab_tf import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(clock, file, seconds, total=10):
    """Counts to ten, in `seconds` each, with a message in between."""
    bar = {"total": total, "desc": "records", "unit": "img", "file": file}
    with progress.ProgressBar(mininterval=0, **bar) as shown:
        for number in range(10):
            clock[0] += seconds
            shown.set_postfix(loss=number)
            shown.update()
            if number == 4:
                shown.write("warning", file=file)
    return file.getvalue()


def test_log_has_a_line_every_30_seconds(clock):
    lines = run(clock, io.StringIO(), seconds=8).splitlines()
    counts = [line.partition(",")[0] for line in lines]
    assert counts == ["records: 3/10 img", "warning"] + [
        f"records: {n}/10 img" for n in (7, 10)
    ]
    assert lines[0].endswith(" left, loss=3") and " elapsed, " in lines[0]


def test_short_work_is_not_logged(clock):
    assert run(clock, io.StringIO(), seconds=1) == "warning\n"


def test_log_without_total_has_no_time_left(clock):
    lines = run(clock, io.StringIO(), seconds=31, total=None).splitlines()
    assert lines[-1].startswith("records: 10 img, ")
    assert not any("left" in line for line in lines)


def test_log_has_no_time_left_after_the_first_step(clock):
    lines = run(clock, io.StringIO(), seconds=31).splitlines()
    assert re.fullmatch(r"records: 1/10 img, [\d:]+ elapsed, loss=1", lines[1])
    assert re.match(r"records: 2/10 img, [\d:]+ elapsed, [\d:]+ left", lines[2])


def test_last_line_is_logged_once(clock):
    file = io.StringIO()
    bar = {"total": 2, "desc": "records", "unit": "img", "file": file}
    with progress.ProgressBar(mininterval=0, **bar) as shown:
        for _ in range(2):
            clock[0] += 31
            shown.update()
    counts = [line.partition(" img")[0] for line in file.getvalue().splitlines()]
    assert counts == ["records: 1/2", "records: 2/2"]


def test_terminal_has_a_bar(clock):
    text = run(clock, Terminal(), seconds=1)
    assert "\r" in text and "| 10/10 [" in text
