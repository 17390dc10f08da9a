"""Score a preprocessed volume: evidence maps, scan scores and regions."""
