"""Functions that few users need; the core loads them only on request."""

import importlib
from types import ModuleType


def load(name: str) -> ModuleType:
    """The module `name` of this package."""
    return importlib.import_module(f"embedding_finetune.contrib.{name}")
