"""Finds, checks and decodes image and video files."""
