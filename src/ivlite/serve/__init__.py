"""The HTTP server: OpenAI's endpoints, and some of ivlite's own, over one loaded model."""
