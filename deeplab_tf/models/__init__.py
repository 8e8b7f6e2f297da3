"""The networks, in pure Keras 3 for any backend; TensorFlow is not imported."""

# Before any module of this package: the first import of Keras imports the modules with
# registered classes, which must not meet one that is half imported.
import keras  # noqa: F401
