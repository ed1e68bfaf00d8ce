"""Writes the corpora again: small valid inputs of every kind, from which the fuzzers start. Needs av, pillow and numpy.

python tests/fuzz/make_corpus.py     # tests/fuzz/corpus/{gguf,safetensors,media,messages,sessions,subtitles,library}/
"""

import importlib.util
import json
import sqlite3
import struct
import tempfile
import zlib
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ivlite.gguf import GGUFFile
from ivlite.library import Library
from ivlite.media.cues import Cue
from ivlite.quantize import quantize
from ivlite.session.file import DATA
from ivlite.session.packing import pack
from ivlite.session.state import SessionState
from ivlite.session.table import Layout, Table, blocks_at

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
PICTURE = np.add.outer(np.arange(48), np.arange(0, 128, 2)).astype(np.uint8)[..., None].repeat(3, 2)


def toy():
    spec = importlib.util.spec_from_file_location("toy", HERE.parents[1] / "examples" / "tiny_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TEXT |= {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "kv_lora_rank": 32}
    module.VISION |= {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "deepstack_visual_indexes": [0],
                      "out_hidden_size": 32}  # fmt: skip
    return module


def models(folder):
    """Headers of model files, up to where the data begins; the target puts zeros there."""
    toy().write_checkpoint(folder)
    for kind in ("f32", "q8_0", "q4_0"):
        path = folder / f"{kind}.gguf"
        quantize(folder, path, type=kind)
        with GGUFFile(path) as file:
            end = min(info.offset for info in file.tensors.values())
        yield kind, path.read_bytes()[:end]


def weights():
    for name, shapes in {"one": {"a": [2, 3]}, "three": {"a": [4], "b.weight": [2, 2], "c": []}, "none": {}}.items():
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape in shapes.items():
            size = 4 * int(np.prod(shape, dtype=int))
            header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        yield name, struct.pack("<Q", len(text)) + text + bytes(end)


def videos(folder):
    kinds = {"a.mp4": "mpeg4", "a.mkv": "libvpx", "a.ts": "mpeg2video", "a.avi": "mpeg4", "a.webm": "libvpx-vp9", "a.gif": "gif",
             "a.mov": "mjpeg", "h264.mp4": "libx264"}  # fmt: skip
    formats = {"gif": "rgb8", "mjpeg": "yuvj420p"}
    for name, codec in kinds.items():
        with av.open(str(folder / name), "w") as out:
            stream = out.add_stream(codec, rate=5)
            stream.height, stream.width, stream.pix_fmt = 48, 64, formats.get(codec, "yuv420p")
            stream.bit_rate = 20000
            for i in range(4):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(PICTURE, 8 * i, 1), format="rgb24")))
            out.mux(stream.encode())
        yield name, (folder / name).read_bytes()


def pictures(folder):
    image = Image.fromarray(PICTURE)
    for name, more in {
        "b.png": {},
        "b.jpg": {"quality": 20},
        "b.webp": {},
        "b.bmp": {},
        "b.tiff": {},
        "c.gif": {},
    }.items():
        image.resize((16, 16) if name in ("b.bmp", "b.tiff") else (64, 48)).save(folder / name, **more)
        yield name, (folder / name).read_bytes()
    Image.fromarray(np.dstack([PICTURE, PICTURE[..., :1]])).save(folder / "alpha.png")
    yield "alpha.png", (folder / "alpha.png").read_bytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("L").save(folder / "exif.jpg", exif=turned, quality=20)
    yield "exif.jpg", (folder / "exif.jpg").read_bytes()


def conversations():
    text = {"type": "text", "text": "What happens?"}
    call = {"type": "function", "function": {"name": "cut", "arguments": {"start": 1.5}}}
    tool = {"type": "function", "function": {"name": "cut", "description": "", "parameters": {"type": "object"}}}
    image, video = (
        {"type": "image", "image": "/corpus/b.png"},
        {"type": "video", "video": "/corpus/a.mkv", "fps": 2, "start": 0},
    )
    yield "text", {"messages": [{"role": "user", "content": "Hello"}], "enable_thinking": True}
    yield "parts", {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [text, text]}]}
    yield "media", {"messages": [{"role": "user", "content": [image, video, text]}], "add_vision_id": True, "fps": 1}
    yield "calls", {"messages": [{"role": "user", "content": "Cut."}, {"role": "assistant", "content": "", "tool_calls": [call]},
                                 {"role": "tool", "content": [text]}, {"role": "tool", "content": "done"}], "tools": [tool]}  # fmt: skip
    yield (
        "urls",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///corpus/b.png"}}]}
            ]
        },
    )


def talks():
    """Tables of session files whose rows are zeros."""
    layout = Layout("0" * 64, "q8", (8,), 4, 16, "demo")
    picture = {"kind": "image", "source": "b.png", "size": [64, 64], "grid": [1, 4, 4], "frames": [0], "timestamps": [],
               "duration": None, "temporal": 2}  # fmt: skip
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}]
    shown = [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}, said[1]]
    for name, count, more in (
        ("text", 300, {"messages": said, "turns": [(2, 300, 300, 0)], "tools": ["{}"], "tail": "."}),
        ("image", 9, {"messages": shown, "turns": [(2, 9, 9, 1)], "media": [picture], "spans": [(0, 3, 4)], "keys": [bytes(16)]}),
        ("empty", 0, {}),
    ):  # fmt: skip
        state = SessionState(
            token_ids=list(range(count)), positions=np.arange(3 * count).reshape(3, count), rows=count, **more
        )
        blocks = [b._replace(sum=zlib.crc32(bytes(b.size))) for b in blocks_at(DATA, 0, count, layout.token_bytes)]
        yield name, Table(layout, count, *pack(state), blocks).packed()


def captions():
    """Subtitle files of every format."""
    ass = "[Script Info]\n[V4+ Styles]\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    ass += "Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,{\\k20}ka{\\k30}ra\\Nx\nDialogue: 1,0:00:01.00,0:00:03.00,D,,0,0,0,,{\\p1}m 0 0\n"
    srt = "1\n00:00:01,000 --> 00:00:02,500\n<i>Grüße</i> &amp; {\\an8}mehr\n\n2\n00:00:05,000 --> 00:00:03,000\nback\n\n3\n00:00:07,000 -->\nopen\n"
    yield "a.srt", srt.encode()
    yield "b.srt", srt.encode("cp1252")
    yield "c.srt", srt.encode("utf-16")
    yield (
        "a.vtt",
        b"WEBVTT\n\nNOTE x\ny\n\nid\n00:01.000 --> 00:02.000 align:start\n<v Bob>Hi <00:00:01.500><c.x>there</c>\n",
    )
    yield "a.ass", ass.encode()
    yield "a.sub", b"{1}{1}25\n{10}{20}Hi|there\n{30}{}open\n{50}{60}{y:i}ok\n"
    yield "a.mpl", b"[10][20]/Hi|you\n[30][]b\n"
    yield "a.txt", b"00:00:01:Hello\n00:00:02:World|you\n"
    yield (
        "a.smi",
        b"<SAMI><BODY>\n<SYNC Start=1000><P>Hi\n<SYNC Start=2000><P>&nbsp;\n<SYNC Start=3000><P>a<br>b\n</BODY>",
    )
    yield (
        "a.ttml",
        (
            b'<?xml version="1.0"?><tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="00:00:01.000" end="00:00:02.000">'
            b"Hi<br/>x</p></div></body></tt>"
        ),
    )


def libraries(folder):
    """A library in small pages."""
    (folder / "a.mp4").write_bytes(b"frames")
    with Library.open(folder / "library.sqlite") as library:
        video = library.add_video(folder / "a.mp4", duration=60)
        library.add_texts(
            video, "subtitle", [Cue(i, i + 1.0, f"line {i} of the red truck") for i in range(20)], "a.srt"
        )
        library.caption(library.add_segments(video, [(0, 30), (30, 60)])[0], video, "a dog", "model")
        library.step(
            library.begin_run("why?"),
            1,
            "call",
            {"x": 1},
            [{"id": "E1", "video": video, "start": 0, "end": 1, "kind": "text"}],
        )
    with sqlite3.connect(folder / "library.sqlite") as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")
    connection.close()
    yield "a.sqlite", (folder / "library.sqlite").read_bytes()


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            "gguf": list(models(folder)), "safetensors": list(weights()), "media": [*videos(folder), *pictures(folder)],
            "messages": [(n, json.dumps(v, indent=1).encode()) for n, v in conversations()], "sessions": list(talks()),
            "subtitles": list(captions()), "library": list(libraries(folder)),
        }  # fmt: skip
    for target, inputs in made.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs:
            (CORPUS / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
