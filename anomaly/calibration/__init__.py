"""Conformal p-values, operating points, calibration records and drift tests."""
