"""The video agent; so far its tool definitions."""
