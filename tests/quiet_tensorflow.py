"""Import this first to start TensorFlow as the programs do: quiet, with oneDNN."""

from deeplab_tf.programs import start_tensorflow

start_tensorflow()
