"""The one place that builds a lightning Trainer."""
