"""Which FFmpeg is inside: shown by `ivlite doctor`."""

import av


def versions():
    """Versions of the FFmpeg libraries in use, {"libavcodec": "61.19.100", ...}."""
    return {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
