"""What everything that is served over HTTP shares, whatever is said in it."""
