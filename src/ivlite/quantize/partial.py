"""The hidden output file, under the name it was imported from before `ivlite.output`."""

from ivlite.output import MAGIC, Partial, marked, partial_path

__all__ = ["MAGIC", "Partial", "marked", "partial_path"]
