"""Score a scan with a saved model: :func:`anomaly.load_model` and :func:`anomaly.load_scan`."""
