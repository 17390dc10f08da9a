"""Preprocess a scan as received to a normalised brain on the template grid: one step per file, run by ``chain``."""
