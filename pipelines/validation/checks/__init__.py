"""What is measured of a model under test."""
