"""Weights from PyTorch projects: their files, and how they name variables."""
