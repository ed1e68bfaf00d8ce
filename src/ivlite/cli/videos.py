"""Commands about many videos and a library: the model and the files on the command line, folders, warnings."""

import os

from ivlite.cli import arguments, printable, say
from ivlite.errors import MediaError, UsageError

LIBRARY = "the library (default: $XDG_DATA_HOME/ivlite/library.sqlite, or ~/.local/share/ivlite/library.sqlite)"


def one_line(text):
    """A text on one line of output: names of files may hold line breaks."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def add_library(group):
    group.add_argument("--library", type=arguments.path, metavar="FILE", help=LIBRARY)


def open_library(args, strict=False, inputs=()):
    """The Library of the command line, whose warnings go to standard error. inputs: files that it must not be."""
    from ivlite.files import cache_folder, identity, keep_digests
    from ivlite.library import Library

    keep_digests(cache_folder())  # large files are read once for all commands
    mine = args.library and identity(args.library)
    if mine and any(path and identity(path) == mine for path in inputs):
        raise UsageError(f"--library {args.library} is also a file that is read: name another one")
    return Library.open(args.library, warn=lambda sentence: say("warning", sentence), strict=strict)


class Loaded:
    """The model of the command line, which is loaded when it is needed; a context manager that closes it."""

    def __init__(self, path, args):
        self.path, self.args, self.model = path, args, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.model is not None:
            self.model.close()

    def __call__(self):
        if self.model is None:
            self.args.model, self.args.no_store = self.path, True  # what one look leaves helps no other
            self.model = arguments.load(self.args, None)
        return self.model


def is_model(path):
    """Whether a path names a model file: by its first bytes, or its name where there is no file."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return os.fspath(path).endswith(".gguf")


def with_model(words):
    """(MODEL or None, the others) of the words on a command line: a model file, or the name of one that ships, comes first."""
    from ivlite.gguf import SHIPPED

    shipped = len(words) > 1 and words[0] in SHIPPED and not os.path.exists(words[0])
    return (words[0], words[1:]) if words and (shipped or is_model(words[0])) else (None, words)


def expanded(paths):
    """The video files that paths name; folders stand for those in them, at any depth. Raises MediaError for none."""
    from ivlite.media.folders import inside
    from ivlite.media.source import local_path

    found = []
    for path in paths:
        if os.path.isdir(path):
            videos = sorted(inside(path))
            if not videos:
                raise MediaError(f"folder {path} has no video files in it: name the files")
            found += videos
        else:
            found.append(local_path(path, "video")[0])
    return list(dict.fromkeys(found))


def is_glob(word):
    """Whether a word is a pattern of names: it has *, ? or [ and is the name of no file."""
    return any(c in word for c in "*?[") and not os.path.lexists(word)


def matching(pattern):
    """The files that a pattern names, by name; `*` without an ending of its own names videos alone. Raises MediaError for none."""
    import glob

    from ivlite.media.folders import SUFFIXES

    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    end = os.path.splitext(pattern)[1]
    if not end or any(c in end for c in "*?["):
        found = [path for path in found if os.path.splitext(path)[1].lower() in SUFFIXES]
    if not found:
        raise MediaError(f"{pattern} matches no {'file' if end else 'video'}: check the pattern")
    return found
