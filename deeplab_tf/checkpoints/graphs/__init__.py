"""Recovers the model config and the weights from the graph of an exported model."""
