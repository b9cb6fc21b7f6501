# The package set of a server that makes no images.
{ }
