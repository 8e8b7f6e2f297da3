"""Scores that equal the benchmarks' own tools."""
