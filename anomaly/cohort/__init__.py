"""Many preprocessed scans: the manifest, splits by subject, lazy volumes, planted lesions."""
