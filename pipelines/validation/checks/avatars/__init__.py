"""Checks on avatar images."""
