"""Where store paths are: the local Nix store."""
