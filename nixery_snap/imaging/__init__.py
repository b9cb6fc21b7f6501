"""From an image name to an image; knows ports, no adapter."""
