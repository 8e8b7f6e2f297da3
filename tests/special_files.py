"""Special files: folder entries that must be refused or skipped, never read."""

import contextlib
import os
import signal
import socket

import pytest


def _make_socket(path):
    # Socket addresses are short: bind from within the folder.
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def _make_device(path):
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero
        path.open("rb").close()
    except PermissionError:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/zero")


# Kind to a function that creates one at a path.
SPECIAL_FILES = {
    "directory": lambda path: path.mkdir(),
    "FIFO": os.mkfifo,
    "socket": _make_socket,
    "device": _make_device,
    "symbolic link loop": lambda path: path.symlink_to(path.name),
    "broken link": lambda path: path.symlink_to("nowhere"),
}


@contextlib.contextmanager
def fail_if_blocked(seconds=10):
    """Fails the test if the block takes longer than `seconds`."""

    def fail(*_):
        pytest.fail(f"blocked for {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_skipped(capfd, *parts):
    """Checks that stderr is one line, apart from tqdm's bars, and has all parts."""
    err = capfd.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [x for x in err if x and not x.startswith(("records: ", "outlines: "))]
    assert all(part in line for part in parts), line
