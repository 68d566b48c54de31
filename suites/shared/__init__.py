"""Helpers that several suites share: requests to a model, needle scores, offline data, timing."""
