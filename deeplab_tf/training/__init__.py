"""Trains models with the semantics of the official code."""
