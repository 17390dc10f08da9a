"""Training of detectors: ``from anomaly.training.fit import fit``; recipe, batches, augmentation, loop."""
