"""Training files, the training itself, and the finished model."""
