"""The native libraries in use: versions of FFmpeg, silencing of libtiff, freed memory."""

import ctypes

import av
from PIL import Image

from ivlite import machine

LONG = 1 << 18  # frames of a file whose index takes memory worth giving back


def versions():
    """Versions of the FFmpeg libraries in use, {"libavcodec": "61.19.100", ...}."""
    return {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}


def silence_libtiff():
    """Stops the libtiff that Pillow uses from writing about damaged files to standard error.

    Its handlers are global to the process, and Pillow sets none. Our own errors and warnings report faults of a file.
    FFmpeg writes nothing unless PyAV's logging is turned on.
    """
    try:
        libtiff = ctypes.CDLL(Image.core.__file__)  # finds symbols of the libraries linked to Pillow's module
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(libtiff, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)
    except (OSError, AttributeError):  # a Pillow without libtiff, or one that hides its symbols
        pass


def give_back(frames):
    """Returns freed memory to the system after work on a file of so many frames, if they are many.

    FFmpeg's index of a day takes hundreds of megabytes.
    """
    if frames >= LONG:
        machine.give_back()
