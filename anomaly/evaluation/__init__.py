"""Detection, localisation, and intervals by bootstrap over subjects."""
