"""Refuse folders that earlier versions exported, whose code imports this module instead of `harness`."""

raise ImportError("an earlier version exported this folder: export the run again with `python run.py export`")
