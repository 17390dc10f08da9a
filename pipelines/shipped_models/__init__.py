"""Make the models that come with the package. Not part of the wheel."""
