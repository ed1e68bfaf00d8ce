"""Model files: tensors and metadata, the configuration, the tokenizer, the loading of weights."""

from ivlite.gguf.file import SHIPPED, GGUFFile, located
from ivlite.gguf.formats import FORMATS, TensorInfo
from ivlite.gguf.header import ARRAY, BOOL, STRING, VERSION

__all__ = ["ARRAY", "BOOL", "FORMATS", "SHIPPED", "STRING", "VERSION", "GGUFFile", "TensorInfo", "located"]
