"""What a model file holds: its tensors and metadata, the configuration read from them, the tokenizer, the weights."""

from ivlite.gguf.file import SHIPPED, GGUFFile, located
from ivlite.gguf.formats import FORMATS, TensorInfo
from ivlite.gguf.header import ARRAY, BOOL, STRING, VERSION

__all__ = ["ARRAY", "BOOL", "FORMATS", "SHIPPED", "STRING", "VERSION", "GGUFFile", "TensorInfo", "located"]
