"""Benchmark programs; run them from the root: `python -m benchmarks.NAME`."""
