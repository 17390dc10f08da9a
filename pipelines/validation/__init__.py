"""Validation tasks: small datasets with a known truth show whether model families are implemented correctly."""
