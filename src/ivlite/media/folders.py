"""Videos in folders."""

import os

from ivlite.stop import checkpoint

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .ts .m2ts .mts .mpg .mpeg .vob .flv .ogv .ogm .wmv .asf .3gp .3g2 .mxf .mj2 .gif".split()
)


def inside(folder):
    """Yields the paths of the video files in a folder, at any depth: by their names, and none that is hidden."""
    for root, folders, names in os.walk(folder):
        checkpoint()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.abspath(os.path.join(root, name))
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".") and os.path.isfile(path):
                yield path
