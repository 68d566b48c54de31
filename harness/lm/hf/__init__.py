"""Code that `run.py export` copies into an exported folder."""
