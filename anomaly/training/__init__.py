"""How networks are trained: batches, augmentation, checkpoints, and the one lightning Trainer."""
