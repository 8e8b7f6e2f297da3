"""Sends the curves of a training run to Weights & Biases or MLflow (`--tracker`).

They get the same values as TensorBoard. Their servers and projects are set by their own
environment variables.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow as tf

from deeplab_tf.errors import import_extra, one_line, require_extra
from deeplab_tf.files import text_files
from deeplab_tf.files.outputs import write_text

NONE = "none"
TRACKER_FILE = "tracker.json"
# Seconds to wait for a server.
_TIMEOUT = 60


class _Client(Protocol):
    """A tracker's client; its methods may raise anything."""

    def start(self, run_id: str | None, folder: str, settings: Mapping) -> str:
        """Starts or resumes a run; returns its id."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values by name."""

    def finish(self, has_failed: bool) -> None:
        """Ends the run."""


class _Wandb:
    """A client of Weights & Biases."""

    def start(self, run_id: str | None, folder: str, settings: Mapping) -> str:
        """Starts or resumes a run; returns its id."""
        wandb = import_extra("wandb", "wandb", "--tracker=wandb needs")
        options = wandb.Settings(
            console="off", init_timeout=_TIMEOUT, finish_timeout=_TIMEOUT
        )
        self._run = wandb.init(
            id=run_id,
            resume="allow",
            name=os.path.basename(folder),
            dir=None if "://" in folder else folder,
            config=dict(settings),
            settings=options,
        )
        # A resumed run repeats steps; wandb's own step must not decrease.
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def finish(self, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class _Mlflow:
    """A client of MLflow."""

    def start(self, run_id: str | None, folder: str, settings: Mapping) -> str:
        """Starts or resumes a run; returns its id."""
        # By default, it repeats requests for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT))
        self._mlflow = import_extra("mlflow", "mlflow", "--tracker=mlflow needs")
        if not self._mlflow.is_tracking_uri_set():
            # MLflow's default, SQLite, needs more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            self._mlflow.set_tracking_uri(os.path.abspath("mlruns"))
        name = None if run_id else os.path.basename(folder)
        run = self._mlflow.start_run(run_id=run_id, run_name=name)
        if run_id is None:
            self._mlflow.log_params(settings)
        return run.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # Names of classes may have characters that MLflow refuses.
        allowed = {re.sub(r"[^\w. /-]", "_", k): v for k, v in values.items()}
        self._mlflow.log_metrics(allowed, step=step)

    def finish(self, has_failed: bool) -> None:
        self._mlflow.end_run("FAILED" if has_failed else "FINISHED")


_CLIENTS: dict[str, Callable[[], _Client]] = {"wandb": _Wandb, "mlflow": _Mlflow}


class Tracker:
    """A run of an experiment tracker, or nothing.

    The first failure is reported and ends tracking, never the training. The id of the
    run is stored in the `train_logdir`, so that resuming continues the run.

    Args:
        name: "wandb", "mlflow" or `NONE`.
        folder: The `train_logdir`; None starts a new run.
        settings: Settings of the run, by name.
        warn: Prints a line.

    Raises:
        UserError: if the client is not installed.
    """

    def __init__(
        self,
        name: str,
        folder: str | None,
        settings: Mapping,
        warn: Callable[[str], None],
    ):
        if name != NONE:
            require_extra([name], name, f"--tracker={name} needs")
        self._name, self._settings, self._warn = name, settings, warn
        self._folder = (folder or "").rstrip("/")
        self._client = _CLIENTS[name]() if name in _CLIENTS else None

    def start(self) -> None:
        """Starts the run, or resumes that of the `train_logdir`."""
        self._call_client(self._start)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values by name, such as "train/data_loss"."""
        numbers = {name: float(value) for name, value in values.items()}
        self._call_client(lambda client: client.log(step, numbers))

    def finish(self, has_failed: bool = False) -> None:
        """Ends the run."""
        self._call_client(lambda client: client.finish(has_failed))
        self._client = None

    def _start(self, client: _Client) -> None:
        known = self._read_run()
        run_id = client.start(known, self._folder, self._settings)
        if self._folder and run_id != known:
            tf.io.gfile.makedirs(self._folder)
            text = json.dumps({"tracker": self._name, "run": run_id})
            write_text(f"{text}\n", os.path.join(self._folder, TRACKER_FILE))

    def _read_run(self) -> str | None:
        """Returns the id of the run of the `train_logdir`; None starts a new one."""
        path = os.path.join(self._folder, TRACKER_FILE)
        if not self._folder or not tf.io.gfile.exists(path):
            return None
        stored: Any = json.loads(text_files.read_content(path))
        return stored["run"] if stored["tracker"] == self._name else None

    def _call_client(self, function: Callable[[_Client], None]) -> None:
        """Calls a function with the client; warns and ends tracking if it fails."""
        if self._client is None:
            return
        try:
            function(self._client)
        except Exception as error:  # whatever a client raises
            self._client = None
            self._warn(
                f"warning: {self._name} failed, and training continues without it: "
                f"{type(error).__name__}: {one_line(error)}"
            )
