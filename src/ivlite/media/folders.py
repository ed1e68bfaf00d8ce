"""Files in folders, and what their endings say of them."""

import os

from ivlite.stop import checkpoint

SUFFIXES = {
    "video": frozenset(
        """.mp4 .m4v .mov .qt .mkv .webm .avi .divx .mpg .mpeg .mpe .m1v .m2v .mpv .m2p .vob .mod .tod .ts .m2t .m2ts
        .mts .3gp .3gpp .3g2 .3gpp2 .flv .f4v .ogv .ogm .wmv .asf .mxf .mj2 .insv .lrv .ivf .obu .y4m .h264 .264 .avc .h265
        .265 .hevc .h266 .266 .vvc .mjpeg .mjpg .gif .apng""".split()
    ),
    "image": frozenset(
        """.png .jpg .jpeg .jpe .jfif .mpo .webp .bmp .dib .tif .tiff .avif .heic .heif .hif .jp2 .j2k .j2c .jpc .jpx
        .jpf .ppm .pgm .pbm .pnm""".split()
    ),
}
NAMED = 8  # files that a sentence names
OTHERS = "that are by name neither videos nor images"
BROKEN = "that cannot be opened: check their links and permissions"
CLOSED = "that cannot be read: change the permissions of these folders"
LINKS = "that are links to folders: name the folders that they lead to"


def kind_of(name):
    """ "video" or "image", by the ending of a file's name; None for others."""
    ending = os.path.splitext(name)[1].lower()
    return next((kind for kind, endings in SUFFIXES.items() if ending in endings), None)


def inside(folder, note=lambda sentence: None):
    """Yields the paths of the video files in a folder, at any depth: by their names, and none that is hidden.

    note(sentence) is told in the end of what was passed over. Raises OSError where the folder itself cannot be read.
    """
    broken = []
    for path in files(folder, note):
        if kind_of(path) == "video":
            if os.path.isfile(path):
                yield os.path.abspath(path)
            else:
                broken.append(path)
    if broken:
        note(passed_over(folder, broken, BROKEN))


def files(folder, note=lambda sentence: None):
    """Yields the paths of all that is in a folder, at any depth, but folders and what is hidden.

    note(sentence) is told in the end of the folders that were passed over. Raises OSError where the folder itself cannot be read.
    """
    closed, links = [], []

    def unread(error):
        if error.filename in (None, os.fspath(folder)):
            raise error
        closed.append(error.filename)

    for root, folders, names in os.walk(folder, onerror=unread):
        checkpoint()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [path for path in (os.path.join(root, name) for name in folders) if os.path.islink(path)]
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))
    if closed:
        note(passed_over(folder, closed, CLOSED))
    if links:
        note(passed_over(folder, links, LINKS))


def passed_over(folder, paths, why):
    """A sentence about what of a folder was passed over. why: "that ...", and after a colon what to do."""
    names = sorted(os.path.relpath(path, folder) for path in paths)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    what, _, advice = why.partition(": ")
    return f"{folder}: passed over {len(names)} {what}: {', '.join(names[:NAMED])}{more}{advice and f'; {advice}'}"
