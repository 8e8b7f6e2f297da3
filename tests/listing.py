"""Lists the outputs of programs in a folder, without the ledger."""

import os

import tensorflow as tf

from deeplab_tf.files.outputs import LEDGER


def list_outputs(folder):
    """Returns the sorted names in a folder, except the ledger; `ram://` works, too."""
    return sorted(set(tf.io.gfile.listdir(os.fspath(folder))) - {LEDGER})
