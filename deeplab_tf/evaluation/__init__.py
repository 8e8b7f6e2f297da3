"""Metrics that match the official tools of the benchmarks."""
