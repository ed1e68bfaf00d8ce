"""What a model file holds: its tensors and metadata, the configuration read from them, the tokenizer, the weights."""

from ivlite.gguf.file import ARRAY, BOOL, FORMATS, SHIPPED, STRING, VERSION, GGUFFile, MappedFile, TensorInfo

__all__ = ["ARRAY", "BOOL", "FORMATS", "SHIPPED", "STRING", "VERSION", "GGUFFile", "MappedFile", "TensorInfo"]
