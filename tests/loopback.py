"""What listens on this machine alone: HTTP servers, and clusters of processes."""

import contextlib
import http.server
import socket
import threading


class Quiet:
    """To be inherited by a handler of requests that does not log them."""

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(handler):
    """Yields an HTTP server on a free port, which has its `url`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def clusters(count=2):
    """Returns what TF_CONFIG is for each worker of a cluster on free ports."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}
        for i in range(count)
    ]
