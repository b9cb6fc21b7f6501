"""Who asks, and what they may have. Routes say what they take; what says nothing is given to nobody."""
