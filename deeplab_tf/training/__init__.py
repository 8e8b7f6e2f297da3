"""Optimiser steps with the official semantics."""
