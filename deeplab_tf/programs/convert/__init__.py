"""Command lines of the converters in `deeplab_tf.convert`."""
