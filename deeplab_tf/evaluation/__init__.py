"""Evaluates models, with metrics that match the benchmarks' official tools."""
