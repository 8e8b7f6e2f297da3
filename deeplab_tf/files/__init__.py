"""Reads, writes, replaces, locks and unpacks files safely."""
