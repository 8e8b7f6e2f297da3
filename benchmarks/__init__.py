"""Programs that measure; run from the root as `python -m benchmarks.NAME`."""
