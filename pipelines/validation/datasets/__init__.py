"""Data sets whose distribution is known."""
