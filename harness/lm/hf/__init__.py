"""The code that `run.py export` copies into an exported folder."""
