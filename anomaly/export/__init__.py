"""Results in the formats of other software."""
