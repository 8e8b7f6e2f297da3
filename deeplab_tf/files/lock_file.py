"""Reads and writes lock files, which describe the process that holds a lock.

Local files are reopened each time, because a network disk may otherwise not show what
other machines wrote. Remote files (gs://) go through `tf.io.gfile`.
"""

import contextlib
import dataclasses
import datetime
import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator

_RECORD_BYTES = 1024
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        token: Random text that identifies one acquisition of the lock.
        host: Name of the machine.
        boot: Boot id of the kernel, shared by all containers of a machine.
        namespace: PID namespace in which `pid` is valid.
        pid: Process id.
        started: Start time of the process in clock ticks, because pids are reused.
        since: Time at which the lock was acquired.
        beat: Number of heartbeats so far.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: str
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @classmethod
    def this_process(cls) -> "Owner":
        """Describes this process, with a new token."""
        now = datetime.datetime.now(datetime.timezone.utc)
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=_read_proc("sys/kernel/random/boot_id"),
            namespace=_read_pid_namespace(),
            pid=os.getpid(),
            started=_read_start_time(os.getpid()),
            since=f"{now:%Y-%m-%d %H:%M:%S} UTC",
        )

    @classmethod
    def from_bytes(cls, record: bytes) -> "Owner | None":
        """Parses a record; returns None if it is invalid."""
        text = record.decode("utf-8", "replace")
        lines = (line.partition("=") for line in text.split("\n"))
        values = {name: value for name, _, value in lines if value.isprintable()}
        try:
            fields = dataclasses.fields(cls)
            return cls(**{f.name: f.type(values[f.name]) for f in fields})
        except (KeyError, ValueError):
            return None

    def to_bytes(self) -> bytes:
        """Returns the record, padded to the same length for every owner."""
        lines = [
            f"{name}={value}\n" for name, value in dataclasses.asdict(self).items()
        ]
        return "".join(lines).encode().ljust(_RECORD_BYTES)

    def is_on_same_kernel(self, other: "Owner") -> bool:
        """Returns whether two processes run under the same kernel."""
        if self.boot or other.boot:
            return self.boot == other.boot
        return self.host == other.host

    def is_running(self, observer: "Owner") -> bool | None:
        """Returns whether another process with this identity is alive.

        Returns:
            None if `observer` cannot tell, and False for the process of `observer`.
        """
        is_visible = self.namespace == observer.namespace
        if not (self.started and is_visible and self.is_on_same_kernel(observer)):
            return None
        if self.pid == observer.pid:
            return False  # an earlier lock of this process
        started = _read_start_time(self.pid)
        if started:
            return started == self.started
        return None if _is_hidden(self.pid) else False


def _read_proc(name: str) -> str:
    """Returns the text of a file in /proc; "" if there is none."""
    try:
        with open(f"/proc/{name}") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read_start_time(pid: int) -> str:
    """Returns the start time of a process: "" if unknown, "Z" or "X" if it is dead."""
    # The program name, in parentheses, may itself contain spaces and parentheses.
    state, *fields = _read_proc(f"{pid}/stat").rpartition(")")[2].split() or [""]
    return state if state in ("", "Z", "X") else fields[18]


def _is_hidden(pid: int) -> bool:
    """Returns whether a process exists although /proc does not show it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def is_remote(path: str) -> bool:
    """Returns whether a path goes through `tf.io.gfile`."""
    return "://" in path


def make_absolute(folder: str) -> str:
    """Makes a local path absolute; remote paths already are."""
    return folder.rstrip("/") if is_remote(folder) else os.path.abspath(folder)


def join_path(folder: str, name: str) -> str:
    """Returns the path of a file in a local or remote folder."""
    return f"{folder}/{name}" if is_remote(folder) else os.path.join(folder, name)


def make_folder(folder: str) -> list[str]:
    """Creates a folder and its parents; returns new local ones, innermost first."""
    if is_remote(folder):
        import tensorflow as tf

        with _translate_errors():
            tf.io.gfile.makedirs(folder)
        return []
    missing, parent = [], folder
    while not os.path.lexists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    os.makedirs(folder, exist_ok=True)
    return missing


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Converts errors of `tf.io.gfile` to OSErrors."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, error.message) from error
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def open_local(path: str, flags: int = 0) -> int:
    """Opens a local lock file, without following links or blocking on a FIFO."""
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, os.O_RDWR | flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def read(path: str) -> bytes | None:
    """Returns the record of a lock file; None if there is no such file."""
    try:
        if not is_remote(path):
            with os.fdopen(open_local(path), "rb") as file:
                return file.read(_RECORD_BYTES)
        import tensorflow as tf

        with _translate_errors(), tf.io.gfile.GFile(path, "rb") as file:
            return file.read(_RECORD_BYTES)
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise


def write(path: str, record: bytes) -> None:
    """Replaces the record of a lock file; a local file must exist."""
    if is_remote(path):
        import tensorflow as tf

        unfinished = f"{path}.{os.getpid()}"
        with _translate_errors():
            with tf.io.gfile.GFile(unfinished, "wb") as file:
                file.write(record)
            tf.io.gfile.rename(unfinished, path, overwrite=True)
        return
    with os.fdopen(open_local(path), "r+b", buffering=0) as file:
        file.write(record)


def remove(path: str) -> None:
    """Removes a lock file."""
    if is_remote(path):
        import tensorflow as tf

        with _translate_errors():
            tf.io.gfile.remove(path)
        return
    os.unlink(path)
