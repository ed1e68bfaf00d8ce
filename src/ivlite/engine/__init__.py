"""Runs a model: prefill and decode over one cache, sampling, and what becomes of the tokens."""
