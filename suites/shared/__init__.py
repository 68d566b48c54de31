"""Pieces that several suites share."""
