"""Retrievers, which turn queries into a run, and rerankers, which reorder it."""

from embedding_finetune.retrieval import bm25  # noqa: F401 - so that RETRIEVERS has it
