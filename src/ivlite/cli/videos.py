"""Commands about many videos and a library: the model and the files on the command line, folders, warnings."""

import argparse
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

    keep_digests(None if args.no_store else cache_folder())  # large files are read once for all commands
    mine = args.library and identity(args.library)
    if mine and any(path and identity(path) == mine for path in inputs):
        raise UsageError(f"--library {args.library} is also a file that is read: name another one")
    return Library.open(args.library, warn=lambda sentence: say("warning", sentence), strict=strict)


def check_unused(args, names, why, used=("no_store",)):
    """Raises UsageError for a setting that is given and means nothing: one of `names`, or of the machine but those in `used`."""
    machine = argparse.ArgumentParser()
    arguments.add_machine(machine)
    defaults = dict.fromkeys(names) | vars(machine.parse_args([]))
    for name, default in defaults.items():
        value = getattr(args, name)
        if name not in used and value is not False and value != default:
            raise UsageError(f"--{name.replace('_', '-')} is about {why}")


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
    from ivlite.media.source import local_path

    found = []
    for path in paths:
        found += in_folder(path) if os.path.isdir(path) else [local_path(path, "video")[0]]
    return list(dict.fromkeys(found))


def in_folder(folder):
    """The videos in a folder, at any depth; warns of what is passed over. Raises MediaError for none."""
    from ivlite.files import reason
    from ivlite.media.folders import inside

    try:
        found = sorted(inside(folder, lambda sentence: say("warning", one_line(sentence))))
    except OSError as error:
        raise MediaError(f"folder {folder} cannot be read: {reason(error)}") from None
    if not found:
        raise MediaError(f"folder {folder} has no video files in it: name the files")
    return found


def is_glob(word):
    """Whether a word is a pattern of names: it has *, ? or [ and is no address, nor the name of a file."""
    if not any(c in word for c in "*?[") or os.path.lexists(word):
        return False
    from ivlite.media.source import uri

    return not uri(word)


def matching(pattern):
    """The files that a pattern names, by name; `*` without an ending of its own names videos alone. Raises MediaError for none."""
    import glob

    from ivlite.media.folders import kind_of

    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    end = os.path.splitext(pattern)[1]
    if not end or any(c in end for c in "*?["):
        found = [path for path in found if kind_of(path) == "video"]
    if not found:
        raise MediaError(f"{pattern} matches no {'file' if end else 'video'}: check the pattern")
    return found
