"""Loads and saves weights by official name."""
