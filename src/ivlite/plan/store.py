"""Keeps measured speeds between runs: one small file per machine, model and settings, in ivlite's own folder."""

import hashlib
import json
import os
import tempfile

from ivlite import ops
from ivlite.files import cache_folder
from ivlite.plan.speeds import Speeds

FOLDER, VERSION, MOST = "speeds", 1, 1 << 16  # bytes of a file


def key(tensors, threads, *settings):
    """The name of the Speeds of a model (its TensorInfos by name) on this machine: shape and types count, not values.

    Another build of the kernels has a name of its own: it may be faster.
    """
    names = sorted(f"{t.name} {t.format} {list(t.shape)}" for t in tensors.values())
    text = "\n".join([*ops.machine(), str(threads), *map(str, settings), *names])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(name):
    """The Speeds that are kept under a name; None if there are none to rely on."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        with open(folder / FOLDER / f"{name}.json", "rb") as file:
            data = json.loads(file.read(MOST))
    except (OSError, ValueError, RecursionError):
        return None
    return Speeds.from_data(data.get("speeds")) if isinstance(data, dict) and data.get("version") == VERSION else None


def save(name, speeds):
    """Keeps Speeds under a name. A folder that cannot be written costs only the next measurement."""
    folder = cache_folder()
    if folder is None:
        return
    text, hidden = json.dumps({"version": VERSION, "speeds": speeds.as_data()}), None
    try:
        (folder / FOLDER).mkdir(mode=0o700, exist_ok=True)
        number, hidden = tempfile.mkstemp(prefix=".", dir=folder / FOLDER)
        with open(number, "w") as file:
            file.write(text)
        os.replace(hidden, folder / FOLDER / f"{name}.json")
    except OSError:
        if hidden is not None:
            try:
                os.unlink(hidden)
            except OSError:
                pass
