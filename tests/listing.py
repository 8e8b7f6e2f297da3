"""What programs wrote to a folder, without the ledger that every such folder has."""

import os

import tensorflow as tf

from deeplab_tf.files.outputs import LEDGER


def listed(folder):
    """Returns the sorted names in a folder, which may be on ram://."""
    return sorted(set(tf.io.gfile.listdir(os.fspath(folder))) - {LEDGER})
