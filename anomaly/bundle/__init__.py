"""A model on disk: save, load, verify."""
