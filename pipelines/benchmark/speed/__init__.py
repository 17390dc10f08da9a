"""How fast training and scoring are, and how much memory they take."""
