"""Trained models in use: as an lm-eval model, as a text generator, and as a transformers model."""
