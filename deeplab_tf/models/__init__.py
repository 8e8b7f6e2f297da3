"""The networks, in pure Keras 3 for any backend; TensorFlow is not imported."""

# Import Keras before any module of this package: its first import also imports the
# modules with registered classes, none of which may be partially imported by then.
import keras  # noqa: F401
