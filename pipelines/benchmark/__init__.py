"""Compare models on planted lesions and real cases; measure speed; study single settings."""
