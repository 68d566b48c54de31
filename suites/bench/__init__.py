"""Benchmarks: kernels, training, the lm-eval model, tables, the loader and the optimiser, each against an alternative.

Each module times one thing with `run`, which returns rows, and prints the rows with `render`.
"""
