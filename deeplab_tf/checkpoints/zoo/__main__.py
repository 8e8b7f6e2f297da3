"""Prints every checkpoint of the model zoo."""

import signal

from deeplab_tf.checkpoints.zoo import list_checkpoints

if __name__ == "__main__":
    # Avoids a traceback with `| head`. Windows has no SIGPIPE.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(list_checkpoints())
