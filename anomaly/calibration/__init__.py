"""Conformal p-values, operating points and their append-only record."""
