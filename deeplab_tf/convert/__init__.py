"""Converts datasets to TFRecords."""
