"""Golden values that fit their model and those that do not, one number off at a time; outputs that lie in a checkpoint."""

import io
import os
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.errors import MediaError, ModelFileError, UsageError
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import Config
from ivlite.media import memory, stills
from ivlite.quantize import golden, partial, quantize


@pytest.fixture(scope="module")
def model(wide, tmp_path_factory):
    """(Config, metadata) of a small model with golden values."""
    path = tmp_path_factory.mktemp("golden") / "m.gguf"
    quantize(wide, path, type="q8_0", golden=True)
    with GGUFFile(path) as file:
        return Config.from_metadata(file.metadata, path), dict(file.metadata)


def test_what_golden_values_are(model):
    config, metadata = model
    values = {
        key.removeprefix("ivlite.golden."): value for key, value in metadata.items() if key.startswith("ivlite.golden.")
    }
    unit = config.vision.patch_size * config.vision.spatial_merge_size
    assert values["size"].tolist() == [2 * unit, 3 * unit] and values["log_sums"].shape == (16,)
    assert (
        values["top_ids"].shape == values["top_logits"].shape == (16 * 64,)
        and values["vision"].size == 6 * config.text.hidden_size
    )
    assert values["deepstack"].size == values["vision"].size * len(config.vision.deepstack_indexes)


def less(values):
    return values[:-1]


def more(values):
    return np.append(values, values[-1:])


def put(at, value):
    def change(values):
        out = np.array(values)
        out[at] = value
        return out

    return change


CHANGES = [
    *((key, change) for key in ("vision", "deepstack", "top_ids", "top_logits", "log_sums") for change in (less, more)), ("size", lambda v: v[::-1] * [2, 1]), ("size", lambda v: v + [0, 1]), ("size", less), ("size", more),
    ("tokens", lambda v: v[v < 0]), ("tokens", lambda v: np.tile(v, 2)), ("top_ids", put(0, 10**6)), ("tokens", put(0, 10**6))
]  # fmt: skip


@pytest.mark.parametrize("key, change", CHANGES)
def test_golden_values_that_do_not_fit(model, key, change):
    config, metadata = model
    name = f"ivlite.golden.{key}"
    changed = metadata | {name: change(metadata[name])}
    assert golden._checked(config, SimpleNamespace(path="a", metadata=metadata))["size"].size == 2
    with pytest.raises(ModelFileError, match="a has damaged golden values"):
        golden._checked(config, SimpleNamespace(path="a", metadata=changed))
    del changed[name]
    with pytest.raises(ModelFileError, match="a has damaged golden values"):
        golden._checked(config, SimpleNamespace(path="a", metadata=changed))


@pytest.mark.parametrize("value, fine", [("vocab - 1", True), ("vocab", False)])
def test_golden_tokens_are_those_of_the_vocabulary(model, value, fine):
    config, metadata = model
    last = config.text.vocab_size - 1 if fine else config.text.vocab_size
    for key, at in (("top_ids", 3), ("tokens", -1)):
        changed = metadata | {f"ivlite.golden.{key}": put(at, last)(metadata[f"ivlite.golden.{key}"])}
        if fine:
            golden._checked(config, SimpleNamespace(path="a", metadata=changed))
        else:
            with pytest.raises(ModelFileError):
                golden._checked(config, SimpleNamespace(path="a", metadata=changed))


def test_outputs_that_lie_in_a_checkpoint(tmp_path):
    folder = tmp_path / "hf"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    origin = SimpleNamespace(files=[str(folder / "config.json")], path=str(folder))
    settings = SimpleNamespace(calibration=None, recipe=None)
    for name in ("out.gguf", "out.bin", "hf/out.gguf", "hf.bin"):
        partial.check_output(tmp_path / name, origin, settings)
    for name in ("hf/out.bin", "hf/sub/out", "hf/config.json"):
        with pytest.raises(UsageError):
            partial.check_output(tmp_path / name, origin, settings)
    single = SimpleNamespace(files=[str(folder / "config.json")], path=str(folder / "config.json"))
    partial.check_output(folder / "out.bin", single, settings)


# ------------------------------------------------------------------------------------------------ sizes of pictures and histories


def png(width, height, depth, colour):
    def chunk(kind, data):
        return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "width, height, colour, fine",
    [(25_000, 10_000, 2, True), (25_001, 10_000, 2, False), (50_000, 20_000, 0, True), (50_001, 20_000, 0, False)],
)
def test_a_header_that_announces_a_gigabyte(monkeypatch, width, height, colour, fine):
    monkeypatch.setattr(stills, "available_memory", lambda: None)
    file = io.BytesIO(png(width, height, 8, colour))
    if fine:
        assert stills.prepared(file, "a", 1.0)[1] == (width, height)
    else:
        with pytest.raises(MediaError, match="beyond the limit of 1.00 GB"):
            stills.prepared(file, "a", 1.0)


def test_numpy_arrays_are_read_as_of_numpy():
    assert memory.Pixels(np.zeros((3, 5, 4), np.uint8), "image").shape == (3, 5)


@pytest.mark.parametrize("size, kept", [(1 << 20, 1 << 20), ((1 << 20) + 8, 1 << 19)])
def test_a_history_is_cut_to_half_a_megabyte(tmp_path, size, kept):
    from ivlite.cli.chat.history import FileHistory

    path = tmp_path / "history"
    path.write_bytes(b'"12345"\n' * (size // 8))
    entries = list(FileHistory(path).load_history_strings())
    assert kept - 8 <= os.path.getsize(path) <= kept and len(entries) == os.path.getsize(path) // 8
    history = FileHistory(path)
    history.store_string("x" * ((1 << 16) + 5))
    assert next(iter(history.load_history_strings())) == "x" * (1 << 16) and path.stat().st_mode & 0o777 == 0o600
