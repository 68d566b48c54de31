"""Refuses folders that were exported before `harness` handed on what they need: their code imports this module."""

raise ImportError("an earlier version exported this folder: export the run again with `python run.py export`")
