"""Measures memory and time of training steps to choose a batch size."""
