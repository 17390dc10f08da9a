"""Validation tasks: small worlds where the truth is known show whether model families are implemented correctly."""
