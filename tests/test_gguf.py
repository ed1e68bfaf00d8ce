"""Reading and writing GGUF: against the gguf package, and against every byte that could be wrong."""

import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

from ivlite import _C
from ivlite.errors import DiskError, ModelFileError, Stopped, UsageError
from ivlite.gguf import FORMATS, GGUFFile
from ivlite.gguf.writer import GGUFWriter, nbytes
from ivlite.stop import Stop, using

METADATA = {
    "general.architecture": "internvideo3",
    "general.alignment": 32,
    "a.bool": True,
    "a.negative": -5,
    "a.large": 1 << 40,
    "a.float": 0.1,
    "a.text": "ä<|im_end|>\n",
    "a.empty": "",
    "a.ints": [1, 2, 300000],
    "a.floats": [0.5, 2],
    "a.bools": [True, False],
    "a.texts": ["x", "", "yy"],
    "a.nothing": [],
}
TENSORS = [("blk.0.w", (3, 64), "q4_0"), ("blk.0.b", (5,), "f32"), ("v.w", (2, 32), "q8_0"), ("f", (7, 3), "bf16")]


def contents(seed=0):
    """Valid blocks of random weights, one uint8 array per tensor of TENSORS."""
    rng = np.random.default_rng(seed)
    return [_C.encode(fmt, rng.standard_normal(np.prod(shape), np.float32)) for _, shape, fmt in TENSORS]


def plain(metadata):
    """Metadata with arrays as lists."""
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in metadata.items()}


def write(path, metadata=METADATA, tensors=TENSORS, data=None):
    with GGUFWriter(path, metadata, tensors) as out:
        for piece in contents() if data is None else data:
            out.write(piece)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.gguf")


def refused(path, *words):
    """Asserts that opening fails with one sentence that names the file and holds the words; returns it."""
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 500
    for word in words:
        assert word in sentence, sentence
    return sentence


# ------------------------------------------------------------------------------------------------ what is right


def test_what_is_written_is_read(file):
    with GGUFFile(file) as got:
        assert plain(got.metadata) == METADATA
        assert {k: type(v) for k, v in plain(got.metadata).items()} == {k: type(v) for k, v in METADATA.items()}
        assert [(t.name, t.shape, t.format) for t in got.tensors.values()] == TENSORS
        assert got.size == os.path.getsize(file)
        for (name, _, _), data in zip(TENSORS, contents(), strict=True):
            assert np.array_equal(got.read(name), data)
            assert got.tensors[name].offset % 32 == 0 and got.tensors[name].nbytes == len(data)


def test_kinds_of_numbers(tmp_path):
    """Each integer has the type that holds it, as another reader sees it."""
    gguf = pytest.importorskip("gguf")
    numbers = {"u32": 2**32 - 1, "u64": 2**63 + 5, "u64.low": 2**32, "i64": -1, "f64": 0.5, "bool": True}
    fields = gguf.GGUFReader(write(tmp_path / "a.gguf", METADATA | numbers)).fields
    kinds = {name: (fields[name].types[0].name.lower(), fields[name].contents()) for name in numbers}
    expected = {"u32": "uint32", "u64": "uint64", "u64.low": "uint64", "i64": "int64", "f64": "float64", "bool": "bool"}
    assert kinds == {name: (expected[name], value) for name, value in numbers.items()}


def test_rows(file):
    with GGUFFile(file) as got:
        whole = got.read("blk.0.w").reshape(3, -1)
        for ids in ([2, 0, 2, 1, 1], [0], []):
            assert np.array_equal(got.read_rows("blk.0.w", np.array(ids, np.int64)), whole[ids])
        for ids in ([3], [-1], [0, 7]):
            with pytest.raises(IndexError):
                got.read_rows("blk.0.w", np.array(ids))


def test_a_file_that_shrinks_while_in_use(file):
    with GGUFFile(file) as got:
        os.truncate(file, os.path.getsize(file) - 200)
        with pytest.raises(ModelFileError, match="shorter"):
            got.read("f")


def test_formats_are_those_of_the_kernels():
    for f in _C.formats():
        g = FORMATS[f["name"]]
        assert (g.ggml_type, g.block, g.block_bytes, g.runs) == (f["ggml_type"], f["block"], f["block_bytes"], True)
    assert sum(g.runs for g in FORMATS.values()) == len(_C.formats())


def test_formats_are_those_of_ggml():
    gguf = pytest.importorskip("gguf")
    sizes = gguf.GGML_QUANT_SIZES | {
        gguf.GGMLQuantizationType.Q8_1: (32, 36)
    }  # the package has 40: the scales are halves in ggml
    for name, g in FORMATS.items():
        kind = gguf.GGMLQuantizationType(g.ggml_type)
        assert (kind.name.lower(), *sizes[kind]) == (name, g.block, g.block_bytes)


def test_the_gguf_package_reads_what_is_written(file):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(file)
    for key, value in METADATA.items():
        if value != []:  # that package has no contents for an empty array
            assert reader.get_field(key).contents() == value
    assert [t.name for t in reader.tensors] == [name for name, _, _ in TENSORS]
    for tensor, (_, shape, fmt), data in zip(reader.tensors, TENSORS, contents(), strict=True):
        assert tensor.tensor_type.name.lower() == fmt and tuple(reversed(tensor.shape)) == shape
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        assert np.array_equal(_C.decode(fmt, data, len(expected)), expected)


def test_what_the_gguf_package_writes_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    path, weights = tmp_path / "theirs.gguf", np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("small", 7)
    writer.add_float32("half", 0.5)
    writer.add_array("tokens", ["a", "b"])
    writer.add_tensor("w", weights)
    writer.add_tensor("k", np.zeros((2, 110), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q3_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as got:
        assert (got.metadata["small"], got.metadata["half"], got.metadata["tokens"]) == (7, 0.5, ["a", "b"])
        assert np.array_equal(got.read("w").view(np.float32).reshape(got.tensors["w"].shape), weights)
        assert (got.tensors["k"].shape, got.tensors["k"].format, got.tensors["k"].runs) == ((2, 256), "q3_k", False)


@pytest.mark.parametrize("fmt", ["bf16", "f16", "q8_0", "q4_0"])
def test_encoding_is_that_of_ggml(fmt):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((64, 256), np.float32) * np.exp2(rng.integers(-12, 12, (64, 1))).astype(np.float32)
    weights[3] = 0
    weights[4, :32] = -weights[4, 0]
    theirs = gguf.quantize(weights, gguf.GGMLQuantizationType[fmt.upper()])
    assert np.array_equal(_C.encode(fmt, weights.reshape(-1)), theirs.reshape(-1).view(np.uint8))
    back = gguf.dequantize(theirs, gguf.GGMLQuantizationType[fmt.upper()]).reshape(-1)
    assert np.array_equal(_C.decode(fmt, theirs.reshape(-1).view(np.uint8), weights.size), back)


def test_a_large_tokenizer_is_read_quickly(tmp_path):
    import time

    words = [f"token{i}" for i in range(300_000)]
    path = write(tmp_path / "tokens.gguf", {"t": words, "json": "x" * 12_000_000}, [], [])
    start = time.process_time()
    with GGUFFile(path) as got:
        assert got.metadata["t"] == words
    assert time.process_time() - start < 20  # of this process alone: about 0.3 s; a slow reader takes minutes


# ------------------------------------------------------------------------------------------------ what is damaged


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def record(name="t", dims=(32,), kind=0, offset=0, count=None):
    head = struct.pack(f"<I{len(dims)}Q", len(dims) if count is None else count, *dims)
    return text(name) + head + struct.pack("<IQ", kind, offset)


def build(pairs=(), records=(), data=4096, tensors=None, keys=None, version=3):
    """A file by hand: the counts may lie."""
    counts = (len(records) if tensors is None else tensors, len(pairs) if keys is None else keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(records)
    return head + bytes(-len(head) % 32 + data)


HUGE = 1 << 63
ARRAY = 9
DAMAGED = {
    "version 1": (build(version=1), "version 1"),
    "version 2": (build(version=2), "version 2"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "tensor count": (build(tensors=HUGE), "claims"),
    "key count": (build(keys=HUGE), "claims"),
    "more keys than bytes": (build(keys=4, data=0), "claims"),
    "key length": (build([struct.pack("<Q", HUGE)]), "bytes long"),
    "text length": (build([pair("k", 8, struct.pack("<Q", HUGE))]), "bytes long"),
    "text beyond the end": (build([pair("k", 8, struct.pack("<Q", 1 << 20))]), "ends within"),
    "text not UTF-8": (build([pair("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")]), "UTF-8"),
    "value type": (build([pair("k", 13, b"")]), "value type 13"),
    "truth value": (build([pair("k", 7, b"\2")]), "truth"),
    "repeated key": (build([pair("k", 0, b"\1")] * 2), "twice"),
    "empty key": (build([pair("", 0, b"\1")]), "empty"),
    "array count": (build([pair("k", ARRAY, struct.pack("<IQ", 10, HUGE))]), "claims"),
    "array of texts count": (build([pair("k", ARRAY, struct.pack("<IQ", 8, 1 << 23))]), "claims"),
    "array type": (build([pair("k", ARRAY, struct.pack("<IQ", 77, 1))]), "value type 77"),
    "array in an array": (build([pair("k", ARRAY, struct.pack("<IQ", 9, HUGE))]), "claims"),
    "alignment 0": (build([pair("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
    "alignment 24": (build([pair("general.alignment", 4, struct.pack("<I", 24))]), "alignment"),
    "alignment as text": (build([pair("general.alignment", 8, text("32"))]), "alignment"),
    "alignment huge": (build([pair("general.alignment", 4, struct.pack("<I", 1 << 31))]), "alignment"),
    "no dimensions": (build(records=[record(dims=())]), "0 dimensions"),
    "five dimensions": (build(records=[record(dims=(1,) * 5)]), "5 dimensions"),
    "dimension count": (build(records=[record(count=1 << 31)]), "dimensions"),
    "dimension 0": (build(records=[record(dims=(32, 0))]), "shape"),
    "product overflows": (build(records=[record(dims=(1 << 32, 1 << 32, 1 << 32))]), "beyond the end"),
    "product wraps to 0": (build(records=[record(dims=(1 << 32, 1 << 32))]), "beyond the end"),
    "type": (build(records=[record(kind=99)]), "type 99"),
    "type no longer used": (build(records=[record(kind=4)]), "type 4"),
    "row of half a block": (build(records=[record(dims=(48,), kind=8)]), "blocks of 32"),
    "offset": (build(records=[record(offset=HUGE)]), "beyond the end"),
    "offset not aligned": (build(records=[record(offset=33)]), "aligned"),
    "beyond the end": (build(records=[record(dims=(1000,), offset=128)]), "incomplete"),
    "overlap": (build(records=[record("a"), record("b", offset=96)]), "overlaps"),
    "same place": (build(records=[record("a"), record("b")]), "overlaps"),
    "same name": (build(records=[record("a"), record("a", offset=128)]), "same name"),
    "name not UTF-8": (build(records=[struct.pack("<Q", 1) + b"\xff" + record()[9:]]), "UTF-8"),
    "empty": (b"", "is empty"),
    "a few bytes": (b"GG", "not a GGUF"),
    "magic only": (b"GGUF", "ends within"),
    "web page": (b"<!DOCTYPE html><html>" + bytes(100), "web page"),
    "web page after a blank": (b"\n\n <html>" + bytes(100), "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "safetensors"),
    "zip": (b"PK\x03\x04" + bytes(100), "zip"),
    "noise": (b"\x93noise" * 20, "not a GGUF"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged(tmp_path, fault):
    data, word = DAMAGED[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    refused(path, word)


def test_not_a_file(tmp_path):
    refused(tmp_path / "none.gguf", "no file")
    refused(tmp_path, "folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "regular file")
    refused("/dev/null", "regular file")
    with pytest.raises(ModelFileError, match="cannot be opened: embedded null byte"):
        GGUFFile(str(tmp_path / "a\0b"))
    (tmp_path / "plain").write_bytes(b"")
    refused(tmp_path / "plain" / "x", "cannot be opened")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_no_permission(file):
    file.chmod(0)
    refused(file, "Permission denied")


def header_size(file):
    with GGUFFile(file) as got:
        return min(t.offset for t in got.tensors.values())


def test_truncated_at_every_byte(file, tmp_path):
    whole, path = file.read_bytes(), tmp_path / "cut.gguf"
    for length in [*range(header_size(file) + 1), *range(len(whole) - 80, len(whole) - 32)]:
        path.write_bytes(whole[:length])
        refused(path)


def mutations(whole, end, seed):
    """Every byte before `end` with a bit turned and with an extreme value, then several bytes at once."""
    rng = random.Random(seed)
    for at in range(end):
        for value in (whole[at] ^ 1 << rng.randrange(8), rng.choice((0, 1, 0x7F, 0x80, 0xFF))):
            yield whole[:at] + bytes([value]) + whole[at + 1 :]
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice((2, 4, 16))):
            data[rng.randrange(end)] = rng.randrange(256)
        yield bytes(data)


@pytest.mark.parametrize("seed", range(2))
def test_any_byte_may_be_wrong(file, tmp_path, seed):
    """Opening and reading work or fail with one sentence, in no other way and in no long time."""
    path = tmp_path / "mutated.gguf"
    for data in mutations(file.read_bytes(), header_size(file), seed):
        path.write_bytes(data)
        try:
            with GGUFFile(path) as got:
                for name in got.tensors:
                    got.read(name)
        except ModelFileError as error:
            assert str(path) in str(error)


# ------------------------------------------------------------------------------------------------ writing


def test_a_failure_leaves_the_older_file(file):
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt), GGUFWriter(file, METADATA, TENSORS) as out:
        out.write(contents()[0])
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="1 of 4"), GGUFWriter(file, METADATA, TENSORS) as out:
        out.write(contents()[0])
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_pieces_of_any_size(file, tmp_path):
    pieces = [data[i : i + 7] for data in contents() for i in range(0, len(data), 7)]
    assert write(tmp_path / "again.gguf", data=pieces).read_bytes() == file.read_bytes()


def test_a_full_disk(file, monkeypatch):
    before = file.read_bytes()

    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left") as caught, GGUFWriter(file, METADATA, TENSORS) as out:
        monkeypatch.setattr(os, "pwrite", full)
        out.write(contents()[0])
    assert str(file) in str(caught.value)
    monkeypatch.undo()
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_too_little_space_is_seen_beforehand(tmp_path):
    huge = [("w", (1 << 30, 1 << 20), "f32")]
    assert nbytes(*huge[0][1:]) == 1 << 52
    with pytest.raises(DiskError, match="are free"):
        GGUFWriter(tmp_path / "x.gguf", {}, huge)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match="folder"):
        GGUFWriter(tmp_path, {}, [])
    with pytest.raises(UsageError, match="regular"):
        GGUFWriter("/dev/null", {}, [])
    with pytest.raises(DiskError, match="no folder"):
        GGUFWriter(tmp_path / "none" / "x.gguf", {}, [])


def test_a_link_is_followed(file, tmp_path):
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    write(link, {"general.name": "new"}, [], [])
    assert link.is_symlink()
    with GGUFFile(file) as got:
        assert got.metadata["general.name"] == "new"


# ------------------------------------------------------------------------------------------------ memory


def texts(count):
    return struct.pack("<Q1sIIQ", 1, b"a", 9, 8, count) + struct.pack("<Q2s", 2, b"ab") * count


HEADERS = {
    "keys": lambda n: struct.pack("<IQQ", 3, 0, n // 17) + b"".join(
        struct.pack("<Q4sIB", 4, i.to_bytes(4, "big").hex().encode()[-4:], 0, 1) for i in range(n // 17)),
    "records": lambda n: struct.pack("<IQQ", 3, n // 36, 0) + b"".join(
        struct.pack("<Q4sIQIQ", 4, i.to_bytes(4, "big").hex().encode()[-4:], 1, 1, 24, 32 * i) for i in range(n // 36)),
    "texts": lambda n: struct.pack("<IQQ", 3, 0, 1) + texts(n // 10),
    "bytes": lambda n: struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 0, n) + os.urandom(n),
    "doubles": lambda n: struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 12, n // 8) + os.urandom(n),
    "one text": lambda n: struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIQ", 1, b"a", 8, n) + b"a" * n,
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_takes_few_times_its_size(tmp_path, kind):
    size = 32 << 20
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + HEADERS[kind](size) + bytes(64))
    program = (
        "import sys\nfrom ivlite.machine import peak_memory\nfrom ivlite.gguf import GGUFFile\n"
        "from ivlite.errors import ModelFileError\nbefore = peak_memory()\n"
        "try: GGUFFile(sys.argv[1])\nexcept ModelFileError as error: pass\nprint(peak_memory() - before)"
    )
    run = [sys.executable, "-c", program, tmp_path / "m.gguf"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3.5 * size


def test_what_real_files_hold_is_read(tmp_path):
    """Vocabularies of 262,144 tokens and their merges as arrays, as llama.cpp writes them."""
    words = [f"token {i}" for i in range(262_144)]
    metadata = {"tokens": words, "merges": [f"a {i}" for i in range(580_000)], "types": np.ones(262_144, np.int32)}
    with GGUFFile(write(tmp_path / "m.gguf", metadata)) as file:
        assert file.metadata["tokens"] == words and file.metadata["types"].sum() == 262_144


@pytest.mark.parametrize("stopped", [False, True])
def test_reads_of_a_file_that_another_thread_has_closed(tmp_path, monkeypatch, stopped):
    """Before the read, and during it: by then its descriptor may belong to another file."""
    stop = Stop()
    if stopped:
        stop.set("closed")
    for closed_during in (False, True):
        file, read = GGUFFile(write(tmp_path / "a.gguf")), os.preadv
        with monkeypatch.context() as patch:
            if closed_during:
                patch.setattr(os, "preadv", lambda *args, file=file, read=read: (read(*args), file.close())[0])
            else:
                file.close()
            with using(stop), pytest.raises(Stopped if stopped else UsageError, match="closed"):
                file.read("f")
