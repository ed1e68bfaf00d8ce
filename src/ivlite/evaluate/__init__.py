"""How good a model file is: prompts to measure with, divergence from a reference, the importance of channels."""
