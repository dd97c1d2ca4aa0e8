"""Arrays to arrays: the parts of the biLM in Linen, each readable alone."""
