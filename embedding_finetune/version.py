"""The version of this package: CHANGELOG.md says what changed."""

__version__ = "1.0.0"
