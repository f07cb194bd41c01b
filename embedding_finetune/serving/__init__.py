"""Saved indexes, search and the HTTP server."""
