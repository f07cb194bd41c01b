"""Functions that few users need; the core loads them only on request."""

import importlib


def load(name):
    """The module `name` of this package."""
    return importlib.import_module(f"embedding_finetune.contrib.{name}")
