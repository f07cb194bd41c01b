"""Whether a file or folder is complete and current: checksums, staging folders and locks."""
