"""Exports models for deployment, and loads exported models."""
