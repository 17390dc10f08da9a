"""The result of a validation, and its page."""
