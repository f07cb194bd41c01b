"""Folders of documents as passages."""
