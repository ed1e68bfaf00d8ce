"""The video agent's room; so far it holds the tools that models are told about."""
