"""Classical models that the model families are compared with."""
