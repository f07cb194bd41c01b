"""Training files, training, and export of the finished model."""
