"""Training of detectors: ``from anomaly.training.fit import fit``; settings, batches, augmentation, loop."""
