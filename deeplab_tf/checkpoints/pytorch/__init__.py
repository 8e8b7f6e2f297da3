"""Weights of PyTorch projects: their files, and how they name variables."""
