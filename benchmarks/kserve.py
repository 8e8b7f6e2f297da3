"""Starts the server of `examples/serving`, and sends it requests over HTTP and gRPC."""

import base64
import functools
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_tf.errors import UserError
from deeplab_tf.memory import resident_bytes

_EXAMPLE = pathlib.Path(__file__).parents[1] / "examples/serving"
# Seconds for the server to start, and for a client to get an answer.
TIMEOUT = 120
# Seconds between two tries.
RETRY_INTERVAL = 0.2
# HTTP statuses of an unavailable server.
_UNAVAILABLE = (502, 503, 504)


class NoResponseError(Exception):
    """A request got no response; it may be repeated."""


class RefusedError(Exception):
    """The server refused a request."""


class Server:
    """The server of `examples/serving`, on free ports.

    Args:
        folder: An empty folder, as an absolute path, for its settings.
        export_path: The export.
        programs: Folder of the program `mlserver`; by default that of this Python.
        options: Options of `LabelService`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        export_path: str,
        programs: str | None = None,
        **options: int,
    ):
        self._folder = folder
        image = (_EXAMPLE / "Dockerfile").read_text()
        self._variables = dict(re.findall(r"^ENV (\w+)=(\S+)$", image, re.MULTILINE))
        if not os.path.isdir(export_path):
            # OpenVINO crashes with another malloc.
            del self._variables["LD_PRELOAD"]
        self._program = os.path.join(
            programs or os.path.dirname(sys.executable), "mlserver"
        )
        ports = iter(_find_free_ports(5))
        self._settings = json.loads((_EXAMPLE / "settings.json").read_text())
        config = (_EXAMPLE / "nginx.conf").read_text()
        for name in ("http_port", "grpc_port", "metrics_port"):
            port = next(ports)
            config = config.replace(f":{self._settings[name]};", f":{port};")
            self._settings[name] = port
        self.http_port, self.grpc_port = next(ports), next(ports)
        config = config.replace("listen 9080", f"listen 127.0.0.1:{self.http_port}")
        config = config.replace("listen 9081", f"listen 127.0.0.1:{self.grpc_port}")
        model = json.loads((_EXAMPLE / "model-settings.json").read_text())
        model["parameters"]["uri"] = os.path.abspath(export_path)
        model["parameters"]["extra"] |= options
        (folder / "deeplab").mkdir()
        shutil.copy(_EXAMPLE / "runtime.py", folder / "deeplab")
        (folder / "deeplab/model-settings.json").write_text(json.dumps(model))
        (folder / "settings.json").write_text(json.dumps(self._settings))
        (folder / "nginx.conf").write_text(config)
        self.has_proxy = shutil.which("nginx") is not None
        if not self.has_proxy:
            self.http_port = self._settings["http_port"]
            self.grpc_port = self._settings["grpc_port"]
        self.starting_seconds: list[float] = []
        self.kills = 0

    def __enter__(self) -> "Server":
        self._processes: list[subprocess.Popen] = []
        if self.has_proxy:
            config = str(self._folder / "nginx.conf")
            command = ["nginx", "-p", str(self._folder), "-c", config]
            # Workers of root's nginx are another user, who cannot write here.
            user = "" if os.geteuid() else " user root;"
            self._run(*command, "-g", f"daemon off;{user}")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(TIMEOUT)

    def _run(self, *command: str) -> subprocess.Popen:
        options = {"env": {**os.environ, **self._variables}}
        with open(self._folder / "server.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        self._processes.append(process)
        return process

    def start(self) -> None:
        """Starts MLServer and waits until it is ready.

        Raises:
            UserError: if it does not start.
        """
        start = time.monotonic()
        server = self._server = self._run(self._program, "start", str(self._folder))
        while not self.is_ready():
            waited = time.monotonic() - start
            if server.poll() is not None or waited > TIMEOUT:
                log = (self._folder / "server.log").read_text(errors="replace")
                raise UserError(f"the server does not start:\n{log[-2000:]}")
            time.sleep(RETRY_INTERVAL)
        self.starting_seconds.append(time.monotonic() - start)

    def is_ready(self) -> bool:
        """Returns whether the server answers that it is ready."""
        try:
            url = f"http://127.0.0.1:{self.http_port}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Kills MLServer."""
        self.kills += 1
        self._server.send_signal(signal.SIGKILL)
        self._server.wait()

    def resident(self) -> int:
        """Returns the memory of MLServer in bytes."""
        return resident_bytes(self._server.pid)


def _find_free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def make_request(data: Any, **changes: Any) -> dict:
    """Returns the body of a request with base64 images.

    `changes` override fields of its input.
    """
    given = {"name": "image_bytes", "shape": [len(data)], "datatype": "BYTES"}
    return {"inputs": [given | {"data": data} | changes]}


class Client:
    """Sends requests of the KServe V2 protocol; each thread has its own."""

    def __init__(self, server: Server):
        self._server = server

    @functools.cached_property
    def _channel(self) -> Any:
        import tritonclient.grpc

        url = f"127.0.0.1:{self._server.grpc_port}"
        return tritonclient.grpc.InferenceServerClient(url)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> dict:
        """Sends a body to the model over HTTP and returns the answer.

        Raises:
            NoResponseError: if there is no answer.
            RefusedError: if the server refuses the request.
        """
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._server.http_port}/v2/models/deeplab/infer",
            body,
            {"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            kind = NoResponseError if error.code in _UNAVAILABLE else RefusedError
            raise kind(f"{error.code} {error.read()[:200]!r}") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoResponseError(str(error)) from error

    def label_over_http(self, files: Sequence[bytes]) -> list[tuple[bytes, str]]:
        """Returns the label map and the error of each encoded image."""
        data = [base64.b64encode(one).decode() for one in files]
        answer = self.post(json.dumps(make_request(data)).encode())
        maps, errors = (one["data"] for one in answer["outputs"])
        return list(zip(map(base64.b64decode, maps), errors, strict=True))

    def infer(self, name: str, datatype: str, values: np.ndarray, output: str) -> Any:
        """Sends a tensor over gRPC and returns an output; see `post` for errors."""
        from tritonclient import grpc

        given = grpc.InferInput(name, list(values.shape), datatype)
        given.set_data_from_numpy(values)
        kills = self._server.kills
        try:
            answer = self._channel.infer(
                "deeplab", [given], client_timeout=float(TIMEOUT)
            )
        except grpc.InferenceServerException as error:
            # A connection that breaks in the middle of an answer is an internal error.
            was_killed = self._server.kills != kills
            is_lost = error.status() == "StatusCode.UNAVAILABLE" or (
                error.status() == "StatusCode.INTERNAL" and was_killed
            )
            raise (NoResponseError if is_lost else RefusedError)(str(error)) from error
        return answer.as_numpy(output)

    def start_request(self, length: int) -> socket.socket:
        """Opens a connection and sends the headers of a request of some length."""
        connection = socket.create_connection(("127.0.0.1", self._server.http_port))
        head = "POST /v2/models/deeplab/infer HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        return connection

    def abort_request(self, content: bytes) -> None:
        """Closes the connection after half of a request."""
        with self.start_request(2 * len(content)) as connection:
            connection.sendall(content)
