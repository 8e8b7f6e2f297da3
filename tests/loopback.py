"""HTTP servers and cluster configurations on the loopback interface."""

import contextlib
import http.server
import socket
import threading


class QuietHandler:
    """A mixin for request handlers that do not log."""

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serve(handler):
    """Runs an HTTP server on a free port; yields it, with its address as `.url`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def find_free_ports(count):
    """Returns ports that no server uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def cluster_configs(count=2):
    """Returns the TF_CONFIG of each worker of a cluster on free ports."""
    workers = [f"127.0.0.1:{port}" for port in find_free_ports(count)]
    return [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}
        for i in range(count)
    ]
