"""From attribute paths to packages, by Nix."""
