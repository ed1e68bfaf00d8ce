"""The native libraries inside PyAV and Pillow: which FFmpeg it is, and their own lines kept off standard error."""

import ctypes

import av
from PIL import Image


def versions():
    """Versions of the FFmpeg libraries in use, {"libavcodec": "61.19.100", ...}."""
    return {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}


def silence_libtiff():
    """Stops the libtiff that Pillow uses from writing about damaged files to standard error.

    Its handlers belong to the process, and Pillow sets none. What is wrong with a file is in our own errors and
    warnings; FFmpeg writes nothing as long as nobody turns PyAV's logging on.
    """
    try:
        libtiff = ctypes.CDLL(Image.core.__file__)  # finds the symbols of what Pillow's module is linked with
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(libtiff, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)
    except (OSError, AttributeError):  # a Pillow without libtiff, or with one that shows no symbols
        pass
