"""A registry that makes container images from Nix packages by name."""

__version__ = "0.1.0"
