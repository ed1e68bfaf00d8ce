"""The output of a conversion: checks of its path, and reuse of golden values from an unfinished file."""

import os

from ivlite.errors import ModelFileError, UsageError
from ivlite.files import expanded
from ivlite.gguf import GGUFFile
from ivlite.output import check_outputs, marked, ready_path, unfinished
from ivlite.quantize import golden


def check_output(out, origin, settings):
    """Raises UsageError if the output would overwrite an input: a source file, through links too, or any file of a checkpoint."""
    check_outputs([out], [*origin.files, settings.calibration, settings.recipe])
    path, folder = os.path.realpath(expanded(out)), os.path.realpath(origin.path)
    inside = os.path.isdir(folder) and os.path.commonpath([folder, path]) == folder
    if inside and not path.endswith(".gguf"):
        raise UsageError(f"{out} lies in the checkpoint {origin.path} and is no .gguf file; choose another name")


def golden_of_unfinished(out, mark):
    """The golden values in an unfinished file of the same work, which saves computing them; {} without one."""
    for path in unfinished(out):
        if path == ready_path(out, mark) or marked(path, mark):
            try:
                with GGUFFile(path) as file:
                    return golden.stored(file.metadata, path)
            except ModelFileError:  # it was interrupted before its header was whole
                pass
    return {}
