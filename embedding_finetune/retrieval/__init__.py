"""Retrievers, which produce runs, and rerankers, which reorder them."""

from embedding_finetune.retrieval import bm25  # noqa: F401 - registers it in RETRIEVERS
