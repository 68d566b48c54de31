"""The language model around a mixer, and its loss."""
