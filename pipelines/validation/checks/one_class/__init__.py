"""One-class anomaly detection on labelled images."""
