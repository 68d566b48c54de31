"""Training data: from any text to verified shards, the order they are read in, and synthetic tasks."""
