"""The networks, in pure Keras 3 for any backend; TensorFlow is not imported."""
