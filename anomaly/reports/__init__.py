"""What a radiologist and an analyst read."""
