"""Where package sets come from, and pinning them to revisions."""
