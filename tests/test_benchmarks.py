"""benchmarks/long_video.py prints every figure of long videos in one run; streams.py those of a server."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
needs_folder = pytest.mark.skipif(not FOLDER.is_dir(), reason="the benchmarks are not part of an installed package")


@pytest.fixture
def benchmark(monkeypatch):
    """long_video, with one small video for all of its cases."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("decode", "second_question", "long_video"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import long_video

    monkeypatch.setattr(long_video, "CASES", ("small",))
    monkeypatch.setitem(long_video.decode.CASES, "small", ((48, 64), 50, 25, 25, 1))
    yield long_video
    for name in ("decode", "second_question", "long_video"):
        sys.modules.pop(name, None)


@needs_folder
def test_one_run_shows_all_of_it(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        sys, "argv",
        ["long_video.py", "--random", "tiny", "--depth", "64", "--tokens", "96", "--rounds", "1", "--folder", str(tmp_path)],
    )  # fmt: skip
    benchmark.main()
    text = capsys.readouterr().out
    for words in (
        "prefill 2,048 tokens after 64 ", "decode 8 tokens after 2,112 ", "second question after 2,120 ", "planned",
        "prefill after 64 tokens is", "planned seconds are", "a first question over 96 tokens", "the second, in memory",
        "the second, from a session file", "the second, from the store", "small: ", "seeking",
    ):  # fmt: skip
        assert words in text, words


@needs_folder
@pytest.mark.parametrize("longest, prompt, deep", [(262144, 2048, 30720), (8192, 2048, 6112), (1000, 250, 718)])
def test_the_depth_fits_the_context(benchmark, longest, prompt, deep):
    from types import SimpleNamespace

    given = SimpleNamespace(file="demo", random=None, type="q4_k_m", threads=None, depth=30720)
    made = benchmark.settings(given, longest)
    assert (made.prompt, made.depth, made.file, made.type) == (prompt, (0, deep), "demo", None)
    assert longest >= made.depth[1] + made.prompt + made.new + benchmark.bench.QUESTION


@needs_folder
def test_a_server_is_asked_all_of_it(monkeypatch, capsys, tmp_path):
    """Of ivlite alone; llama-server is asked in the same words."""
    pytest.importorskip("starlette")
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("streams", "servers", "clip", "rivals", "versus", "tuning", "words")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import streams

    arguments = [
        "--size",
        "tiny",
        "--type",
        "q4_0",
        "--new",
        "24",
        "--long",
        "600",
        "--film",
        "200",
        "--frames",
        "48",
        "--rounds",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["streams.py", *arguments, "--folder", str(tmp_path)])
    streams.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    for name in names:
        sys.modules.pop(name, None)
    assert [row.split("  ")[0] for row in rows] == [
        *(f"{n} streams, tokens/s" for n in (1, 2, 4, 8)), "a short question alone, s", "beside a prefill of 600, s",
        "beside 48 frames in vision, s", "a question about 200 tokens, s", "the second about them, s",
    ]  # fmt: skip
    assert all(" ivlite " in row for row in rows)
