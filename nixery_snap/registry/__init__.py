"""The OCI distribution API over HTTP; the only place that knows HTTP status codes."""
