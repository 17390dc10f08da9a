"""Detection, localisation and generation metrics, with bootstrap intervals over subjects."""
