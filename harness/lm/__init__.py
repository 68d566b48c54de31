"""Trained models in use: as an lm-eval model, generating text, and as a transformers model."""
