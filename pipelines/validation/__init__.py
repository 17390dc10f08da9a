"""Tasks whose truth is known: what a family makes and finds is held against the law its images were drawn from."""
