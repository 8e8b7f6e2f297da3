"""The networks: pure Keras 3, on any backend, without tensorflow."""
