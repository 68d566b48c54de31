"""Experiments: the shipped files (*.yaml), their schema, and how one becomes matched runs."""
