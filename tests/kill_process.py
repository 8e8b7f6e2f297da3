"""Kills a function at every system call that changes files."""

import os
import shutil
import signal
import subprocess
import time

import pytest

# System calls that create, write, move or remove files, on any architecture.
_CALLS = (
    *("open", "openat", "creat", "write", "pwrite64", "ftruncate", "rename"),
    *("renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink"),
    *("unlinkat", "mkdir", "mkdirat", "rmdir", "copy_file_range", "sendfile"),
)


def require_strace():
    if shutil.which("strace") is None:
        pytest.skip("needs strace")


def kill_at_call(function, call, number):
    """Runs a function in a child process, killed when it enters a system call.

    Args:
        function: Called without arguments, in a fork of this process.
        call: Name of the system call.
        number: Number of the call at which the process is killed, from 1.

    Returns:
        True if it was killed, False if it makes fewer such calls.
    """
    child = os.fork()
    if not child:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.kill(os.getpid(), signal.SIGSTOP)
            function()
        finally:
            os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    inject = f"inject=?{call}:signal=KILL:when={number}"
    command = ["strace", "-f", "-qqq", "-p", str(child), "-e", f"trace=?{call}"]
    with subprocess.Popen(
        [*command, "-e", inject, "-o", os.devnull],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        _wait_until_traced(child)
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _wait_until_traced(process):
    for _ in range(1000):
        with open(f"/proc/{process}/status") as file:
            [tracer] = [line for line in file if line.startswith("TracerPid")]
        if int(tracer.split()[1]):
            return
        time.sleep(0.01)
    raise AssertionError("strace did not attach")


def kill_at_every_call(function, prepare, check):
    """Kills a function at each of its system calls and checks the state it leaves.

    Args:
        function: Function to kill.
        prepare: Creates the initial state.
        check: Checks the state; takes the call at which the function was killed.

    Returns:
        Number of kills.
    """
    kills = 0
    for call in _CALLS:
        number = 1
        prepare()
        while kill_at_call(function, call, number):
            check(f"{call} {number}")
            number += 1
            prepare()
        kills += number - 1
    return kills
