"""Triton kernels of Gated Delta Rule-2, written from the equations of arXiv 2605.22791."""
