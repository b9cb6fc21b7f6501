"""Blobs and records over one object store."""
