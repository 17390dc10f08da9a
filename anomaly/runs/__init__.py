"""A run folder: what `anomaly score` writes, and everything that reads it."""
