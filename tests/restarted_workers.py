"""Runs the workers of a training, each restarted by a shell loop until it succeeds."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

# What a platform's restart policy does; the times show how long a failure takes.
LOOP = 'until "$@"; do echo "restarts after status $?" >&2; done'


class RestartedWorker:
    """A worker in a shell loop; its output is appended to `log`."""

    def __init__(self, command, tf_config, log):
        self.log = pathlib.Path(log)
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with self.log.open("a") as file:
            self.loop = subprocess.Popen(
                ["bash", "-c", LOOP, "worker", *map(str, command)],
                env=environment | {"TF_CONFIG": json.dumps(tf_config)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def process(self):
        """The process id of the running worker, or None between two of them."""
        path = f"/proc/{self.loop.pid}/task/{self.loop.pid}/children"
        with contextlib.suppress(OSError), open(path) as file:
            children = file.read().split()
            return int(children[0]) if children else None

    def kill(self):
        """Kills the worker, but not its loop; returns whether there was one."""
        process = self.process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return process is not None

    def stop(self):
        """Stops loop and worker."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.loop.pid, signal.SIGKILL)
        self.loop.wait()


@contextlib.contextmanager
def restarted(commands, tf_configs, folder):
    """Runs a worker per command in shell loops; yields the workers."""
    workers = [
        RestartedWorker(command, tf_config, folder / f"worker{i}.log")
        for i, (command, tf_config) in enumerate(zip(commands, tf_configs, strict=True))
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def wait_until(condition, workers, seconds=600):
    """Waits until a condition holds; the error shows the workers' last lines."""
    end = time.monotonic() + seconds
    while not condition():
        texts = "\n".join(each.log.read_text()[-1500:] for each in workers)
        assert time.monotonic() < end, texts
        time.sleep(0.05)
