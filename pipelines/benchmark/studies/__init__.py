"""Studies of single design choices; their figures are in docs/."""
