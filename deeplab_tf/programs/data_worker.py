"""Runs an input worker for train.py --data_service, or their dispatcher.

    deeplab-data-worker --dispatcher --port=5050
    deeplab-data-worker --dispatcher_address=grpc://localhost:5050 --port=5051

Workers may start and stop at any time. They read records at the trainer's path and use
about four cores each. A process is healthy while its port accepts connections.
"""

import functools
import socket
import threading

from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.config.data import parse_service_address
from deeplab_tf.errors import UserError

_FLAGS = {
    "dispatcher": (
        *(flags.BOOLEAN, False),
        "Run the dispatcher instead of a worker.",
    ),
    "dispatcher_address": (
        *(flags.STRING, None),
        "Address of the dispatcher, grpc://HOST:PORT, for a worker.",
    ),
    "port": (
        *(functools.partial(flags.at_least(1), upper_bound=2**16 - 1), 5050),
        "Port to listen on.",
    ),
    "host": (
        *(flags.STRING, None),
        "Name or address by which trainers reach a worker. Default: the host name.",
    ),
    "work_dir": (
        *(flags.STRING, None),
        "Folder for the dispatcher's journal, from which it resumes after a restart. "
        "Default: training ends if the dispatcher restarts.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_flags(values, _FLAGS)
    return values


def check(values: absl_flags.FlagValues) -> None:
    """Raises UserError unless the flags describe either a dispatcher or a worker."""
    if values.dispatcher == bool(values.dispatcher_address):
        raise UserError(
            "give either --dispatcher or --dispatcher_address=grpc://HOST:PORT"
        )
    if values.work_dir and not values.dispatcher:
        raise UserError("--work_dir is for the --dispatcher; a worker has no state")
    if values.dispatcher_address:
        parse_service_address(values.dispatcher_address, "--dispatcher_address")


def main(values: absl_flags.FlagValues) -> None:
    """Runs the server until the process is stopped."""
    from deeplab_tf.data import service

    if values.dispatcher:
        server = service.start_dispatcher(values.port, values.work_dir)
        print(f"dispatcher at port {values.port}", flush=True)
    else:
        address = f"{values.host or socket.gethostname()}:{values.port}"
        server = service.start_worker(values.dispatcher_address, address)
        print(f"worker {address} of {values.dispatcher_address}", flush=True)
    threading.Event().wait()
    del server  # it runs as long as it exists
