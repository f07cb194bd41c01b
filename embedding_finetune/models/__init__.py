"""Encoders: how a model is used, and texts turned into embeddings."""
