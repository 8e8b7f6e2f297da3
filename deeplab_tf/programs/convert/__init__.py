"""The converters' command lines: flags to `deeplab_tf.convert`, and one summary."""
