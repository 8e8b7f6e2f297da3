"""Locks between processes: one download of a file, one training in a folder.

While it runs, a training process holds `<train_logdir>/.training.lock`. Two mechanisms
protect this file, because neither works everywhere:

- `flock`, which the kernel releases no matter how a process dies. It does not exist in
  object stores (gs://), on some network disks and on Windows.
- A heartbeat: the owner keeps incrementing a counter in the file. A process on another
  machine that finds the lock watches the counter, and takes the lock over if the
  counter does not change.

The owner checks the file before every write, so a process that was suspended and lost
its lock stops instead of writing.
"""

import contextlib
import dataclasses
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator

from deeplab_tf.errors import UserError
from deeplab_tf.files import lock_file
from deeplab_tf.files.lock_file import Owner

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HEARTBEAT_SECS = 20.0
# A lock is stale after this many periods without a heartbeat.
STALE_PERIODS = 2.5
# Without flock, the last process to write the file gets the lock; the other processes
# wait this long before they check.
SETTLE_SECS = 1.0
TRAINING_LOCK = ".training.lock"
_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def path_lock(path: str) -> Iterator[None]:
    """Holds a lock on a path; waits for other processes on this machine.

    Creates the parent folder of the path if needed. There is no lock in a read-only
    folder, on a disk without locks, or on Windows.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if fcntl:
                _lock(stack.enter_context(open(f"{path}.lock", "a")), path)
        yield


def _lock(file, path: str) -> None:
    """Locks a file until it is closed; prints a message if it has to wait."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that is using {path}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def training_lock(folder: str) -> Iterator[None]:
    """Keeps other processes from training in a folder; may be nested.

    Args:
        folder: The `train_logdir`, local or remote. It is created if needed, and then
            removed at the end if it is still empty.

    Raises:
        UserError: if another process is training there, or the lock was lost.
    """
    if not folder:
        raise UserError("--train_logdir is empty; set it to the folder for checkpoints")
    key = lock_file.make_absolute(folder)
    with _guard:
        lock = _held.get(key)
        if lock is None:
            lock = _TrainingLock(folder)
            lock.acquire()
            _held[key] = lock
        else:
            lock.verify()
        lock.depth += 1
    try:
        yield
    finally:
        with _guard:
            lock.depth -= 1
            if lock.depth == 0 and _held.pop(key, None) is lock:
                lock.release()


def verify_training_lock(folder: str) -> None:
    """Checks that this process has not lost the lock of a folder that it locked.

    Raises:
        UserError: if the lock was removed, or taken over by another process.
    """
    lock = _held.get(lock_file.make_absolute(folder))
    if lock is not None:
        lock.verify()


class _TrainingLock:
    """The lock of one folder; `depth` counts nested `training_lock` blocks."""

    def __init__(self, folder: str):
        self.depth = 0
        self._folder = folder
        self._path = lock_file.join_path(lock_file.make_absolute(folder), TRAINING_LOCK)
        self._owner = Owner.this_process()
        self._descriptor: int | None = None
        self._created: list[str] = []
        self._ended = threading.Event()
        # Heartbeats are written while `verify` reads.
        self._file_guard = threading.Lock()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, daemon=True)

    def acquire(self) -> None:
        """Acquires the lock and starts the heartbeats; creates the folder if needed."""
        try:
            self._created = lock_file.make_folder(os.path.dirname(self._path))
            while not self._try_acquire():
                self._close()
        except BaseException as error:
            self._remove_lock()
            if isinstance(error, OSError):
                raise UserError(
                    f"--train_logdir={self._folder} cannot be locked: {error}; give "
                    "a different --train_logdir"
                ) from error
            raise
        self._heartbeat.start()

    def _try_acquire(self) -> bool:
        """Writes the lock file; returns False if it was removed in the meantime."""
        has_flock = not lock_file.is_remote(self._path) and self._try_flock()
        before = self._read()
        if before is not None:
            self._require_stale(before, has_flock)
        if self._descriptor is not None and not self._is_open_file():
            return False
        lock_file.write(self._path, self._owner.to_bytes())
        if not has_flock:
            time.sleep(SETTLE_SECS)
            winner = self._read()
            if winner is None or winner.token != self._owner.token:
                raise self._make_error(winner)
        return True

    def _try_flock(self) -> bool:
        """Opens the file and locks it with flock; returns False if not supported."""
        self._descriptor = lock_file.open_local(self._path, os.O_CREAT)
        if fcntl:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                raise self._make_error(self._wait_for_owner()) from None
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
        # Windows cannot remove an open file.
        self._close()
        return False

    def _is_open_file(self) -> bool:
        """Returns whether the locked file is still at the path; owners remove it."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))

    def _wait_for_owner(self) -> Owner | None:
        """Returns the owner, after waiting for it to write the file."""
        for _ in range(20):
            owner = self._read()
            if owner is not None:
                return owner
            time.sleep(0.05)
        return None

    def _require_stale(self, owner: Owner, has_flock: bool) -> None:
        """Raises UserError unless the owner is certainly no longer running."""
        # Under the same kernel, a living owner would still hold the flock.
        if has_flock and owner.is_on_same_kernel(self._owner):
            return
        is_running = owner.is_running(self._owner)
        if is_running is None:
            is_running = self._wait_for_heartbeat(owner)
        if is_running:
            raise self._make_error(owner)

    def _wait_for_heartbeat(self, owner: Owner) -> bool:
        """Returns whether the owner renews its lock within a time; prints messages."""
        limit = STALE_PERIODS * HEARTBEAT_SECS
        print(
            f"{self._folder} is locked by {owner}; waiting {limit:.0f} s to see "
            "whether it is still training",
            file=sys.stderr,
        )
        end = time.monotonic() + limit
        while time.monotonic() < end:
            time.sleep(HEARTBEAT_SECS / 10)
            now = self._read()
            if now != owner:
                return now is not None
        print(
            f"taking over {self._folder} from {owner}, which no longer renews its lock",
            file=sys.stderr,
        )
        return False

    def _make_error(self, owner: Owner | None) -> UserError:
        return UserError(
            f"--train_logdir={self._folder} is in use by another training run "
            f"({owner or 'process unknown'}); stop that process or give a different "
            "--train_logdir"
        )

    def verify(self) -> None:
        """Raises UserError if the lock file is gone or has another owner."""
        try:
            found = self._read()
        except OSError:
            return  # the disk may recover; otherwise, saving will fail and report it
        if found is None or found.token != self._owner.token:
            reason = f"taken over by {found}" if found else "removed"
            raise UserError(
                f"--train_logdir={self._folder} was {reason} during this training run; "
                "nothing more can be saved there"
            )

    def _send_heartbeats(self) -> None:
        owner = self._owner
        while not self._ended.wait(HEARTBEAT_SECS):
            owner = dataclasses.replace(owner, beat=owner.beat + 1)
            # If a heartbeat fails, the next one makes up for it.
            with contextlib.suppress(OSError):
                self._write_heartbeat(owner)

    def _write_heartbeat(self, owner: Owner) -> None:
        """Writes the owner to the lock file if the lock is still ours."""
        with self._file_guard:
            found = Owner.from_bytes(lock_file.read(self._path) or b"")
            # Do not recreate a removed folder or overwrite another owner's lock.
            if found is not None and found.token == owner.token:
                lock_file.write(self._path, owner.to_bytes())

    def release(self) -> None:
        # A forked process must not release its parent's lock.
        if os.getpid() != self._owner.pid:
            return
        self._ended.set()
        self._heartbeat.join()
        self._remove_lock()

    def _remove_lock(self) -> None:
        """Removes the file and the empty folders that this lock created."""
        with contextlib.suppress(OSError, UserError):
            found = self._read()
            # Remove the file before closing its descriptor, which ends the flock.
            if found is not None and found.token == self._owner.token:
                lock_file.remove(self._path)
        self._close()
        with contextlib.suppress(OSError):
            for folder in self._created:
                os.rmdir(folder)

    def _read(self) -> Owner | None:
        """Returns the owner, if any; raises UserError if this is not a lock file."""
        with self._file_guard:
            record = lock_file.read(self._path)
        owner = Owner.from_bytes(record or b"")
        # After a power failure, the file may consist of zeros.
        if owner is None and (record or b"").strip(b"\0 \n"):
            raise UserError(
                f"{self._path} is not a lock file; remove it if no training run uses "
                "this folder"
            )
        return owner

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held: dict[str, _TrainingLock] = {}
_guard = threading.RLock()


def _forget_locks() -> None:
    """Closes copies of the locks in a forked process, which may outlive its parent."""
    global _guard
    _guard = threading.RLock()
    for lock in _held.values():
        lock._close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
