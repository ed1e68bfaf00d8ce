"""Conversations that keep their cache."""
