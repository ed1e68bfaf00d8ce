"""Runs a model: prefill and decode with one cache, vision features, sampling, streaming of the reply."""
