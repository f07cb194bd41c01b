"""How a model is used, texts turned into vectors, and retrievers that turn queries into a run."""
