"""Benchmarks of kernels, training, the lm-eval model, tables, the loader and the optimiser.

Each module measures one thing against an alternative: `run` returns rows, and `render` makes text of them.
"""
