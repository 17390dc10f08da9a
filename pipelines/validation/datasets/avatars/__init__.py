"""Avatar images drawn from a known distribution of attributes."""
