"""Benchmarks: our kernels, models, loader and tables beside what a user would pick instead."""
