"""Requests that are wrong: each gets one sentence that names the field, and the server goes on."""

import base64
import io
import json
import random
import re
import resource
import struct
import zlib

import pytest
from serve_asking import PICTURE, WHAT, asked, data_uri
from test_serve_guard import JSON, refused

from ivlite.errors import MediaError

pytest.importorskip("starlette")

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}


@pytest.mark.parametrize("body", [
    b"", b"{", b"nothing", b"[]", b"5", b'"text"', b"null", b"\xff\xfe{}", b'{"messages": NaN}', b'{"temperature": -Infinity}',
    b"[" * 10_000, b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"a":' * 10_000, b'{"a": ' + b"9" * 5000 + b"}",
    b'{"messages": [' + b"[" * 64 + b"]" * 64 + b"]}", b'{"messages": ["\\ud8', b'{"messages": []} trailing',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
])  # fmt: skip
def test_bodies_that_are_no_json(http, body):
    refused(http.post("/v1/chat/completions", content=body, headers=JSON), 400)


def test_many_values(http):
    refused(
        http.post("/v1/chat/completions", content=b'{"a":[' + b"[]," * 2_000_000 + b"0]}", headers=JSON), 400, "values"
    )


@pytest.mark.parametrize("field, values", [
    ("messages", [None, "text", {}, [], [None], ["text"], [{}], [{"role": "user"}], [{"role": "king", "content": "x"}],
                  [{"role": "user", "content": 5}], [{"role": "user", "content": [5]}], [{"role": 5, "content": "x"}],
                  [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
                  [{"role": "user", "content": "x", "contnet": "y"}], [{"role": "user", "content": "half \ud800"}],
                  [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]]),
    ("temperature", ["hot", -1, 101, True, [], {}, "1"]),
    ("top_p", [-0.1, 1.1, "all"]), ("top_k", [-2, 1.5, 2**40]), ("min_p", [2]), ("repetition_penalty", [0, -1]),
    ("max_tokens", [0, -1, 1.5, "many", True, 10**30]), ("max_completion_tokens", [0]), ("seed", ["x", 1.5, 2**64, -(2**63) - 1]),
    ("stop", ["", [""], [5], {}, ["x"] * 17]), ("n", [0, 2, "1", True]), ("stream", ["yes", 1]), ("stream_options", [True]),
    ("logprobs", [5]), ("top_logprobs", [1, 21, -1]), ("tools", [{}, "x", [5]]), ("tool_choice", [5, []]),
    ("response_format", ["json", {}, {"type": "grammar", "grammar": "start: /a/"}, {"type": "xml"}]),
    ("chat_template_kwargs", [[], {"enable_thinking": "yes"}]), ("enable_thinking", ["yes"]), ("budget", [0, "x"]),
    ("frequency_penalty", [0.5]), ("presence_penalty", [-1]), ("logit_bias", [{"5": 1}]), ("modalities", [["audio"]]),
    ("functions", [[{"name": "f"}], {}]), ("reasoning_effort", [5, ["high"]]),
    ("media_io_kwargs", [5]), ("mm_processor_kwargs", [[]]), ("model", [5]), ("user", [5]),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_fields_that_are_wrong(http, field, values):
    for value in values:
        body = json.dumps(asked("Hello", max_tokens=1) | {field: value})
        error = refused(http.post("/v1/chat/completions", content=body, headers=JSON), 400)
        assert error["param"] == field or field in error["message"] or "message" in error["message"], (value, error)
        assert error["type"] == "invalid_request_error" and len(error["message"]) <= 500


@pytest.mark.parametrize("part", [
    {"type": "video_url"}, {"type": "video_url", "video_url": {}}, {"type": "video_url", "video_url": {"url": 5}},
    {"type": "video_url", "video_url": {"url": ""}}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@@"}}, {"type": "image_url", "image_url": {"url": "data:"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 50}}, VIDEO,
    {"type": "video", "video": data_uri(), "fps": -1}, {"type": "video", "video": data_uri(), "nframes": "x"},
    {"type": "video", "video": data_uri(), "start": 100, "end": 5}, {"type": "video", "video": data_uri(), "stream": 7},
    {"type": "video", "video": data_uri(), "frmes": 4}, {"type": "video", "video": []}, {"type": "video", "video": [5]},
    {"type": "video", "video": [{"t": 2, "image": data_uri()}, {"t": 1, "image": data_uri()}]},
    {"type": "video", "video": [["x"]]}, {"type": "video", "video": data_uri(), "budget": "x"},
    {"type": "video", "video": data_uri(), "min_pixels": 10**9, "max_pixels": 1},
    {"type": "video", "video": data_uri(), "max_pixels": 4096, "video_url": {"url": data_uri()}},
    {"type": "video_url", "video_url": {"url": data_uri(), "fps": 1}, "fps": 2},
    {"type": "video", "video": "data:video/jpeg;base64," + ",".join(["/9j/"] * 5000)},
], ids=range(23))  # fmt: skip
def test_media_that_cannot_be_used(ask, served, part):
    for more in ({}, {"stream": True}):
        error = refused(ask(part, WHAT, **more), 400)
        assert not re.search(r"/tmp|ivlite-|\b0x", error["message"]), error
    assert not list(served.service.files.folder.glob("sent-*"))


def test_a_budget_of_several_videos_is_stated_once(ask):
    video = {"type": "video", "video": data_uri()}
    refused(ask({**video, "budget": 64}, video, WHAT), 400, "budget")
    refused(ask({**video, "budget": 64}, WHAT, budget=64), 400, "budget")


def test_a_picture_that_unfolds(ask):
    """A small file of 16000 x 16000 pixels is refused before it is decoded."""
    from PIL import Image

    side = 20_000
    raw = zlib.compress(bytes(side // 8 + 1) * side, 9)
    out = io.BytesIO()
    Image.new("1", (8, 8)).save(out, "PNG")
    png = bytearray(out.getvalue())

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    bomb = bytes(png[:8]) + chunk(b"IHDR", header) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    uri = f"data:image/png;base64,{base64.b64encode(bomb).decode()}"
    error = refused(ask({"type": "image_url", "image_url": {"url": uri}}, WHAT), 400)
    assert error["code"] == "invalid_media"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_prompt_beyond_the_context(ask):
    error = refused(ask("word " * 5000), 400, "context")
    assert error["code"] == "context_length_exceeded"


OTHER = ["http://169.254.169.254/latest", "https://example.org/a.mp4", "ftp://x/y", "HTTP://x", "rtsp://x", "cache:http://x/",
         "concat:/etc/passwd|b", "subfile,,start,0,,:/etc/passwd", "/etc/passwd", "../clip.mp4", "clip.mp4", "~/a.mp4", "\\\\x\\y",
         "file-0123", "file-../../etc/passwd", "file-" + "0" * 32, "file-" + "G" * 32, "gopher://x", "fd:0", "pipe:0"]  # fmt: skip


@pytest.mark.parametrize("kind", ["video", "image"])
def test_nothing_else_is_opened(ask, monkeypatch, kind):
    import socket

    def connect(*_):
        raise AssertionError("the server opens a connection")

    sentences = set()
    for url in OTHER:
        answer = ask({"type": f"{kind}_url", f"{kind}_url": {"url": url}}, WHAT)
        sentences.add(refused(answer, 400)["message"])
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", connect)
    assert len(sentences) == 3  # an address, an id, something else


def test_files_outside_the_media_folder_do_not_exist(ask, media_root, tmp_path):
    (tmp_path / "secret.mp4").write_bytes((media_root / "clip.mp4").read_bytes())
    (media_root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (media_root / "inside.mp4").symlink_to(media_root / "clip.mp4")
    (media_root / "loop.mp4").symlink_to(media_root / "loop.mp4")
    (media_root / "folder").mkdir()
    root = f"file://{media_root}"
    sentences = set()
    try:
        for url in ("file:///etc/passwd", "file:///etc/nothing-here", f"{root}/gone.mp4", f"{root}/../gone", f"{root}/link.mp4",
                    f"{root}/loop.mp4", f"{root}/folder", f"file://{tmp_path}/secret.mp4", f"{root}/../{tmp_path.name}/secret.mp4",
                    f"{root}/%2e%2e/%2e%2e/etc/passwd", f"file://elsewhere{media_root}/clip.mp4", "file:", "file:///", "FILE:///etc/passwd",
                    f"{root}/a%00b", f"file:///proc/self/root{media_root}/../../../etc/passwd", "file://[", "file:etc/passwd"):  # fmt: skip
            for kind in ("video", "image"):
                answer = ask({"type": f"{kind}_url", f"{kind}_url": {"url": url}}, WHAT)
                sentences.add(refused(answer, 400)["message"])
        assert len(sentences) == 1
        for name in ("clip.mp4", "inside.mp4", "folder/../clip.mp4", "cl%69p.mp4"):
            answer = ask({"type": "video_url", "video_url": {"url": f"{root}/{name}"}}, WHAT, max_tokens=1)
            assert answer.status_code == 200, (name, answer.text)
    finally:
        for name in ("link.mp4", "inside.mp4", "loop.mp4"):
            (media_root / name).unlink()
        (media_root / "folder").rmdir()


def test_a_link_that_comes_in_the_place_of_a_file(served, media_root, tmp_path):
    """What was checked when the request came is looked at again before it is opened."""
    film, other = media_root / "changes.mp4", tmp_path / "other.mp4"
    for path in (film, other):
        path.write_bytes((media_root / "clip.mp4").read_bytes())
    try:
        with served.service.sources() as sources:
            found = sources.medium(f"file://{film}", "video")
            assert len(found.probe(2, None, None, None).times.times)
            film.unlink()
            film.symlink_to(other)
            with pytest.raises(MediaError, match="can no longer be read"):
                found.probe(2, None, None, None)
    finally:
        film.unlink()


def test_subtitles_beside_a_video_are_files_of_the_folder(served, media_root, tmp_path):
    cue = "1\n00:00:01,000 --> 00:00:02,000\nwords\n"
    (tmp_path / "secret.srt").write_text(cue)
    (media_root / "clip.srt").write_text(cue)
    (media_root / "clip.en.srt").symlink_to(tmp_path / "secret.srt")
    try:
        with served.service.sources() as sources:
            film = sources.medium(f"file://{media_root}/clip.mp4", "video")
            assert film.probe(2, None, None, None).beside(film.path) == [str(media_root.resolve() / "clip.srt")]
    finally:
        for name in ("clip.srt", "clip.en.srt"):
            (media_root / name).unlink()


def test_no_folder_is_readable_by_default(served, ask, media_root, monkeypatch):
    monkeypatch.setattr(served.service, "root", None)
    sentences = {
        refused(ask({"type": "video_url", "video_url": {"url": f"file://{path}"}}, WHAT), 400)["message"]
        for path in (f"{media_root}/clip.mp4", "/etc/passwd", "/gone")
    }
    assert len(sentences) == 1 and "--media-root" in sentences.pop()


def png(width, height):
    """A PNG of one colour, one bit a pixel: a few kilobytes for a hundred million pixels."""
    row = bytes(1 + -(-width // 8))
    pack = zlib.compressobj(9)
    data = b"".join([*(pack.compress(row * 100) for _ in range(height // 100)), pack.flush()])

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def uri(data, kind):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_pictures_that_swell(http, served, ask):
    """A small file of many pixels, in each place where a picture may stand; it costs the server's own process nothing."""
    bomb = png(12_000, 12_000)
    assert len(bomb) < 64 << 10
    for part in ({"type": "image_url", "image_url": {"url": uri(bomb, "image/png")}}, {"type": "video", "video": uri(bomb, "video/mp4")},
                 {"type": "video", "video": [{"t": 0, "image": uri(bomb, "image/png")}]}):  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert refused(ask(part, WHAT), 400)["code"] == "invalid_media"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes
    frames = "data:video/jpeg;base64," + ",".join(["AAAA"] * 5000)
    assert "4,096" in refused(ask({"type": "video_url", "video_url": {"url": frames}}, WHAT), 400)["message"]


def test_what_a_source_says_that_it_is_counts_for_nothing(ask):
    """A picture that is called a video is a video of one frame, and the reverse is refused; words are neither."""
    red = base64.b64decode(PICTURE.partition(",")[2])
    for kind in ("video/mp4", "text/html", "", "image/svg+xml"):
        assert ask({"type": "image_url", "image_url": {"url": uri(red, kind)}}, WHAT, max_tokens=1).status_code == 200
    for data in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"words", b"%PDF-1.7", b"PK\3\4", b"\x89PNG\r\n\x1a\n"):
        for name in ("image", "video"):
            part = {"type": f"{name}_url", f"{name}_url": {"url": uri(data * 20, "image/png")}}
            assert refused(ask(part, WHAT), 400)["code"] == "invalid_media"


def mutated(random, value, depth=0):
    """The value with some of its parts replaced by what they should not be."""
    odd = [
        None,
        True,
        0,
        -1,
        1e300,
        10**40,
        "",
        "x",
        "\ud800",
        "\0",
        [],
        {},
        [[]],
        {"type": "video"},
        "data:;base64,AA",
        0.5,
        "file-x",
    ]
    if random.random() < 0.015 + 0.005 * depth:
        return random.choice(odd)
    if isinstance(value, dict):
        out = {key: mutated(random, item, depth + 1) for key, item in value.items() if random.random() > 0.01}
        return out | ({random.choice(["type", "role", "x", ""]): random.choice(odd)} if random.random() < 0.02 else {})
    if isinstance(value, list):
        return [mutated(random, item, depth + 1) for item in value for _ in range(random.choice([1] * 30 + [0, 2]))]
    return value


def test_random_requests(http, served):
    """Nothing that is JSON is the server's failure."""
    dice = random.Random(20261129)
    base = asked(
        {"type": "video_url", "video_url": {"url": data_uri(), "nframes": 2}, "start": 0}, {"type": "text", "text": "<1 seconds>"},
        {"type": "image_url", "image_url": {"url": PICTURE}}, WHAT, max_tokens=2,
        top_p=0.9, stop=["a"], stream=False, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], seed=3,
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}, media_io_kwargs={"video": {"fps": 1}},
        mm_processor_kwargs={"size": {"longest_edge": 4096}}, chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    seen = set()
    for _ in range(150):
        body = json.dumps(mutated(dice, base))
        path = dice.choice(["/v1/chat/completions"] * 3 + ["/v1/plan"])
        answer = http.post(path, content=body, headers=JSON)
        assert answer.status_code in (200, 400), (body[:2000], answer.text, served.lines[-1:])
        seen.add(answer.status_code)
    assert http.get("/health").status_code == 200 and seen == {200, 400}
    assert not list(served.service.files.folder.glob("sent-*"))


@pytest.mark.parametrize("body", ["os.abort()", "time.sleep(1000)", "bytes(8 << 30)"], ids=["dies", "hangs", "swells"])
@pytest.mark.parametrize("work", ["probe", "frames"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_decoder_that_fails_is_a_fault_of_the_request(serving, work, body, stream):
    import httpx
    from test_apart import replaced

    from ivlite.media.apart import Decoders

    served = serving(decoders=Decoders(patience=1.0, command=replaced(work, body)))
    with httpx.Client(base_url=served.url, timeout=120, trust_env=False) as http:
        video = {"type": "video", "video": data_uri(), "nframes": 2, "max_pixels": 5120}
        body = asked(video, WHAT, stream=stream)
        error = refused(http.post("/v1/chat/completions", json=body), 400)
        assert error["code"] == "invalid_media" and "ended" not in error["message"]
        assert http.post("/v1/chat/completions", json=asked("Hello", max_tokens=1)).status_code == 200
    assert len(served.lines) == 1 and "<" in served.lines[0]  # the log says which
