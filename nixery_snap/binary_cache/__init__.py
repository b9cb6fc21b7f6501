"""Our own binary cache over HTTP, for Nix as the client."""
