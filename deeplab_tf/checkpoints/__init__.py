"""Weights in and out by their official names."""
