"""Completeness and freshness of outputs: checksums, manifests, staging folders and locks."""
