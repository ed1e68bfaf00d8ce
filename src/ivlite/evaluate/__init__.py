"""Evaluation of model files: prompts, divergence from a reference, importance of channels, random models."""
