"""Compares the settings of all workers before TensorFlow connects them.

TensorFlow waits forever for a worker that is missing, has died or expects a different
number of workers, and it trains with workers whose settings differ.
"""

import contextlib
import dataclasses
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from deeplab_tf.errors import UserError

# A worker that cannot train exits within a minute.
LIMIT = 50
_RETRY = 0.2
_MAX_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Member:
    """A worker: its index, the addresses of all workers and its settings.

    `settings` must be equal on all workers; error messages use their keys.
    """

    index: int
    addresses: Sequence[str]
    settings: Mapping[str, str]

    def describe(self, index: int) -> str:
        """Returns the number of a worker, from 1, and its address."""
        return f"worker {index + 1} ({self.addresses[index]})"


def meet(member: Member, limit: float = LIMIT) -> None:
    """Waits for all workers and checks that their settings are equal.

    The first worker listens on its own address, which TensorFlow uses afterwards; the
    others send it their settings and wait for the result of the comparison.

    Raises:
        UserError: on every worker, if a worker does not connect within `limit` seconds
            or has different settings. Names the worker and the setting.
    """
    deadline = time.monotonic() + limit
    find_problem = _compare_all if member.index == 0 else _ask_first
    problem = find_problem(member, deadline, limit)
    if problem:
        raise UserError(problem)


def _compare_all(member: Member, deadline: float, limit: float) -> str:
    """Compares the settings of the other workers with ours and sends the result."""
    with contextlib.ExitStack() as stack:
        waiting: dict[int, socket.socket] = {}
        problem, server = "", _listen(member, deadline)
        stack.enter_context(server)
        missing = set(range(1, len(member.addresses)))
        while missing and not problem and time.monotonic() < deadline:
            server.settimeout(_RETRY)
            with contextlib.suppress(OSError, ValueError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(2)
                message = json.loads(_read_line(connection))
                index = int(message["index"])
                waiting[index] = connection
                problem = _compare(member, index, message["settings"])
            waiting = {i: each for i, each in waiting.items() if not _is_closed(each)}
            missing = set(range(1, len(member.addresses))) - waiting.keys()
        if missing and not problem:
            names = ", ".join(member.describe(i) for i in sorted(missing))
            problem = (
                f"{names} did not connect within {limit:.0f} s; start one process for "
                "each address in TF_CONFIG"
            )
        for connection in waiting.values():
            with contextlib.suppress(OSError):
                connection.sendall(_to_line({"problem": problem}))
        return problem


def _ask_first(member: Member, deadline: float, limit: float) -> str:
    """Sends our settings to the first worker; returns the problem it found, or ""."""
    host, _, port = member.addresses[0].rpartition(":")
    message = _to_line({"index": member.index, "settings": dict(member.settings)})
    while time.monotonic() < deadline:
        # The first worker answers in gRPC while its previous process still trains.
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            socket.create_connection((host.strip("[]"), int(port)), 2) as connection,
        ):
            connection.sendall(message)
            connection.settimeout(max(deadline + 2 - time.monotonic(), 1))
            return str(json.loads(_read_line(connection))["problem"])
        time.sleep(_RETRY)
    return (
        f"{member.describe(0)} did not answer {member.describe(member.index)} within "
        f"{limit:.0f} s; start one process for each address in TF_CONFIG"
    )


def _compare(member: Member, index: int, settings: Mapping[str, str]) -> str:
    """Returns the first difference between a worker's settings and ours, or ""."""
    for name in [*member.settings, *(n for n in settings if n not in member.settings)]:
        own, other = member.settings.get(name), settings.get(name)
        if own != other:
            return (
                f"worker {index + 1} has {name} {other}, but {member.describe(0)} has "
                f"{own}; start all workers with the same command, package and data"
            )
    return ""


def _listen(member: Member, deadline: float) -> socket.socket:
    """Returns a server on the port of the first worker, once it is free."""
    port = int(member.addresses[0].rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"cannot listen on port {port} of {member.describe(0)}: "
                    f"{error.strerror}; give it a free port in TF_CONFIG"
                ) from error
        time.sleep(_RETRY)


def _read_line(connection: socket.socket) -> str:
    """Returns the line that a worker sent; raises ValueError if it is incomplete."""
    with connection.makefile("rb") as file:
        line = file.readline(_MAX_BYTES)
    if not line.endswith(b"\n"):
        raise ValueError("no complete line")
    return line.decode()


def _is_closed(connection: socket.socket) -> bool:
    # A waiting worker sends nothing, so its socket is readable only once closed.
    return bool(select.select([connection], [], [], 0)[0])


def _to_line(message: Mapping) -> bytes:
    return json.dumps(message).encode() + b"\n"


@contextlib.contextmanager
def exit_after(seconds: float, reason: str) -> Iterator[None]:
    """Exits with status 1 if the block takes longer.

    For calls into TensorFlow that wait for other workers and cannot be interrupted.
    """

    def leave() -> None:
        print(f"{os.path.basename(sys.argv[0])}: {reason}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
