"""What the fuzzers call: each target takes bytes, and either uses them or raises an IvliteError. All else is a defect.

`run.py` drives them with coverage feedback; tests/test_fuzz.py runs the corpora and plain mutations of them.
"""

import json
import os
import random
import struct
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
ROWS = 1 << 16  # bytes of rows in a session file
ROOM = 1 << 20  # bytes that a model file is extended to: the tensors which its header describes lie within
LIMITS = {"fps": 1.0, "min_frames": 2, "max_frames": 8, "min_pixels": 1024, "max_pixels": 1 << 16}
ODD = (
    None, True, -1, 0, 1, 2**31, 2**63, 1e308, -1e-308, float("nan"), "", "x", "\0", "\ud800", "a" * 5000, [], {}, [[]],
    "<|im_start|>", "<|video_pad|>", "/dev/null", "/nowhere.mp4", "/corpus/b.png", "/corpus/a.mkv", "file:///corpus/b.jpg", "http://host/a.png",
    "data:image/png;base64,AAAA", [None], {"type": None}, {"type": "text"}, [{"type": "image", "image": 5}],
)  # fmt: skip


@cache
def folder():
    """A folder in memory for the inputs of this process."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="ivlite-fuzz-", dir=shared if os.access(shared, os.W_OK) else None))


def stored(name, data, size=0):
    """The path of a file that holds the data, extended with zeros to `size` bytes."""
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    if size > len(data):
        os.truncate(path, size)
    return path


def gguf(data):
    """A model file: its header, configuration, tensors and tokenizer."""
    from ivlite.gguf import GGUFFile, config
    from ivlite.gguf.tokenizer import Tokenizer
    from ivlite.models.internvideo3 import tensor_names

    with GGUFFile(stored("model.gguf", data, ROOM)) as file:
        settings = config.Config.from_metadata(file.metadata, file.path)
        config.check_tensors(file.tensors, tensor_names(settings), file.path)
        for name in file.tensors:
            file.read(name, 0, 1) if len(file.tensors[name].shape) > 1 else file.read(name)
        Tokenizer(file.metadata[config.TOKENIZER])


def safetensors(data):
    """A checkpoint's weights: the header of a safetensors file."""
    from ivlite.quantize.checkpoint import Checkpoint

    stored("checkpoint/model.safetensors", data)
    with Checkpoint(folder() / "checkpoint") as checkpoint:
        for name, source in checkpoint.tensors.items():
            checkpoint.raw(name, 0, min(source.nbytes, 64))


def media(data):
    """A video and an image: opened, planned, and two pairs of frames decoded."""
    from ivlite import media
    from ivlite.errors import MediaError

    path, refusals = stored("medium", data), []
    for opener, limits in ((media.open_video, LIMITS), (media.open_image, {k: LIMITS[k] for k in list(LIMITS)[3:]})):
        try:
            for pair in islice(opener(path, **limits).pairs(), 2):
                assert pair.ndim == 4 and pair.shape[-1] == 3
        except MediaError as error:
            refusals.append(error)
    if len(refusals) == 2:
        raise refusals[0]


@cache
def model():
    """(tokenizer, config) of the model in the package."""
    from ivlite.gguf import GGUFFile, config
    from ivlite.gguf.tokenizer import Tokenizer

    with GGUFFile("demo") as file:
        return Tokenizer(file.metadata[config.TOKENIZER]), config.Config.from_metadata(file.metadata, "demo")


def messages(data):
    """A conversation with settings, as JSON: {"messages": ..., "tools": ..., "fps": ..., ...}; /corpus/ is media's."""
    from ivlite import prompt
    from ivlite.errors import UsageError

    try:
        given = json.loads(data.replace(b"/corpus/", f"{CORPUS / 'media'}/".encode()))
    except (ValueError, RecursionError):
        return
    if not isinstance(given, dict):
        given = {"messages": given}
    settings = {k: given[k] for k in ("tools", "enable_thinking", "add_vision_id", *LIMITS) if k in given}
    try:
        built = prompt.build(given.get("messages"), *model(), **settings)
    except UsageError as error:
        assert len(str(error)) <= 500, f"a message of {len(str(error))} characters"
        raise
    assert built.positions.shape == (3, len(built.token_ids))


class Rows:
    """A cache that takes any rows."""

    def __init__(self, token_bytes):
        self.token_bytes, self.length = token_bytes, 0

    def truncate(self, length):
        self.length = length

    def restore(self, first, data):
        assert first == self.length
        self.length += len(data) // self.token_bytes


def sessions(data):
    """The table of a session file, in a file whose checksums are right and whose rows are zeros."""
    import hashlib

    from ivlite.session.file import DATA, HEADER, MAGIC, ORDER, ROOT, VERSION, SessionFile, page
    from ivlite.session.packing import held_by, unpack
    from ivlite.session.state import checked

    at = DATA + ROWS
    root = page(ROOT, 1, at, len(data), at + len(data), hashlib.sha256(data).digest())
    path = stored("talk.ivs", page(HEADER, MAGIC, VERSION, ORDER, bytes(16)) + root + root + bytes(ROWS) + data)
    with SessionFile.open(path) as file:
        state = unpack(file)
        file.restore(Rows(file.table.layout.token_bytes))
        held_by(state)
        checked(state, model()[1])


def subtitles(data):
    """A subtitle file of any format: its cues lie within the video and in order."""
    from ivlite.media import subtitles

    found = subtitles.read(stored("talk.srt", data), duration=100.0, rate=25.0)
    starts = [cue.start for cue in found.cues]
    assert starts == sorted(starts) and all(0 <= cue.start <= cue.end <= 100 and cue.text for cue in found.cues)


def library(data):
    """A library's file: what is damaged is set aside, and what is written is found again."""
    from ivlite.library import Library

    place = folder() / "library"
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    path = stored("library/library.sqlite", data)
    with Library.open(path) as library:
        library.search("red truck"), library.runs(), [library.segments(video.id) for video in library.videos()]
        library.note(library.add_video(path, bytes(32)), "a new note")
        assert any(hit.text == "a new note" for hit in library.search('"a new note"')) and library.kept


TARGETS = {"gguf": gguf, "safetensors": safetensors, "media": media, "messages": messages, "sessions": sessions,
           "subtitles": subtitles, "library": library}  # fmt: skip


def once(name, data):
    """Runs one target; whether the input was taken. Everything but an IvliteError goes through."""
    from ivlite.errors import IvliteError

    try:
        TARGETS[name](data)
        return True
    except IvliteError:
        return False


# ------------------------------------------------------------------------------------------------ mutations


def mutate_bytes(data, rng):
    """Flips, integers at their limits, deletions, repetitions and cuts: a few of them."""
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(out)), rng.choice((1, 2, 4, 8))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            limit = rng.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1))
            out[at : at + size] = limit.to_bytes(size, "little")
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + 8 * size]
        else:
            del out[at:]
        out = out or bytearray(1)
    return bytes(out)


def mutate_json(value, rng):
    """A copy of JSON data in which one value is another, gone, or repeated."""
    places = [((), value)]
    for path, v in places:
        items = v.items() if isinstance(v, dict) else enumerate(v) if isinstance(v, list) else ()
        places += [((*path, key), child) for key, child in items]
    path, _ = rng.choice(places)
    copy = json.loads(json.dumps(value))
    if not path:
        return rng.choice(ODD)
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.randrange(4)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1 and isinstance(parent, list):
        parent.append(parent[path[-1]])
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(("fps", "start", "end", "nframes", "name", "tools", "x" * 600))] = rng.choice(ODD)
    else:
        parent[path[-1]] = rng.choice([*ODD, rng.choice(places)[1]])
    return copy


def mutate(name, data, seed):
    """Another input like `data` for a target, the same one for the same seed."""
    rng = random.Random(seed)
    if name == "messages" and rng.randrange(8):
        try:
            value = json.loads(data)
            for _ in range(rng.choice((1, 1, 2, 3))):
                value = mutate_json(value, rng)
            return json.dumps(value).encode()
        except (ValueError, RecursionError):
            pass
    if name == "sessions" and rng.randrange(4):
        try:
            (size,) = struct.unpack_from("<Q", data)
            text = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), rng)).encode()
            return struct.pack("<Q", len(text)) + text + data[8 + size :]
        except (ValueError, RecursionError, struct.error):
            pass
    return mutate_bytes(data, rng)
