"""From a preprocessed volume to evidence maps, scan scores and regions."""
