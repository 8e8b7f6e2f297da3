"""Prints every preset."""

import signal

from deeplab_tf.presets import PRESETS, describe

if __name__ == "__main__":
    # Avoids a traceback with `| head`. Windows has no SIGPIPE.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print("\n".join(map(describe, PRESETS.values())))
