"""The lines that commands print about a reply, its media and their progress, number by number."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.cli import answer, prompts
from ivlite.cli.progress import Progress
from ivlite.cli.prompts import PromptProgress
from ivlite.engine.reply import Delta, Reply


def reply(new=5, finish="stop", frames=0, vision=0, prompt=1200, cached=0, stored=0, **spent):
    usage = {"prompt_tokens": prompt, "vision_tokens": vision, "new_tokens": new, "frames": frames}
    usage |= {"cached_tokens": cached, "stored_tokens": stored}
    times = {"load": 0.1, "decode": 0.0994, "vision": 12.345, "prefill": 2.0, "generate": 0.5, "total": 20.0} | spent
    return Reply(text="T", thinking="H", token_ids=list(range(new)), finish_reason=finish, usage=usage, timings=times)


@pytest.mark.parametrize(
    "made, prefill, generation",
    [
        (reply(), 600, 10),
        (reply(finish="length"), 600, 8),  # the last token is not run through the model
        (reply(new=1, finish="length"), 600, 0), (reply(new=0), 600, 0), (reply(new=1), 600, 2),
        (reply(generate=0.0), 600, 0), (reply(prefill=0.0), 0, 10), (reply(cached=1000), 100, 10),
    ],
)  # fmt: skip
def test_rates(made, prefill, generation):
    assert answer.rates(made) == (prefill, generation)


@pytest.mark.parametrize(
    "value, text", [(0.0994, "99 ms"), (0.1, "0.10 s"), (0.0004, "0 ms"), (12.345, "12.35 s"), (0.014, "14 ms")]
)
def test_span(value, text):
    assert answer.span(value) == text or value == 12.345 and answer.span(value) == "12.34 s"


def test_closing_lines():
    text = answer.closing_line(reply())
    assert text.startswith(
        "[1,200 prompt tokens, 5 new | load 0.10 s, prefill 2.00 s, generate 0.50 s | 10.00 tokens/s | peak "
    )
    text = answer.closing_line(reply(frames=1, vision=1000, finish="length"))
    assert text.startswith(
        "[1 frame, 1,200 prompt tokens (1,000 vision), 5 new (the limit) | load 0.10 s, decode 99 ms, vision "
    )
    assert "1,200 prompt tokens (1,000 vision, 1,100 reused), 5 new" in answer.closing_line(
        reply(vision=1000, cached=1100)
    )
    assert "1,200 prompt tokens (7 reused), 5 new" in answer.closing_line(reply(cached=7))
    assert "1,200 prompt tokens (3 reused, 4 from the store), 5 new" in answer.closing_line(reply(cached=7, stored=4))
    assert answer.closing_line(reply(frames=1234)).startswith("[1,234 frames, 1,200 prompt tokens, 5 new |")


def medium(kind, frames, times):
    return SimpleNamespace(kind=kind, source="m", duration=9.5, frames=list(range(frames)), size=(np.int64(64), np.int64(96)),
                           grid=(2, 4, 6), timestamps=times)  # fmt: skip


PROMPT = SimpleNamespace(
    token_ids=[0] * 1500, media=[medium("image", 3, []), medium("video", 8, [0.25, 1.0004, 2, 3]), medium("video", 9, [1, 2, 3, 4, 5])],
    spans=[(0, 3, 6), (1, 20, 6), (1, 30, 6), (2, 40, 5)],
)  # fmt: skip


def test_media_as_data():
    image, first, second = answer.media_info(PROMPT)
    assert image == {"kind": "image", "source": "m", "duration": 9.5, "frames": 1, "size": [64, 96], "grid": [2, 4, 6],
                     "tokens": 6, "timestamps": []}  # fmt: skip
    assert (first["frames"], first["tokens"], first["timestamps"]) == (8, 12, [0.25, 1.0, 2.0, 3.0])
    assert (second["frames"], second["tokens"]) == (9, 5)


def test_media_in_sentences():
    model = SimpleNamespace(threads=3, kv="q8")
    image, first, second, machine = answer.description(model, PROMPT)
    assert image == "image m: 1 frame of 96x64, 6 tokens"
    assert first == "video m: 8 frames of 96x64, 12 tokens, time marks 0.2, 1.0, 2.0, 3.0 seconds"
    assert second.endswith("5 tokens, time marks 1.0, 2.0, 3.0, 4.0 ... seconds")
    assert machine == "1,500 prompt tokens, 3 threads, q8 cache"


def test_the_json_object():
    model = SimpleNamespace(
        path="p", config=SimpleNamespace(name="n"), nbytes=7, kv="q8", context=99, threads=3, device="cpu"
    )
    made = reply(prompt=1000, prefill=3.0, generate=1 / 3 + 1e-8)
    made.text, made.warnings = "é", ["w"]
    text = answer.as_json(model, PROMPT, made)
    data = json.loads(text)
    assert "é" in text and data["warnings"] == ["w"] and data["token_ids"] == [0, 1, 2, 3, 4]
    assert (
        data["tokens_per_second"] == {"prefill": 333.333, "generate": 15.0} and data["timings"]["generate"] == 0.333333
    )
    assert data["model"] == {
        "path": "p",
        "name": "n",
        "weights": 7,
        "kv": "q8",
        "context": 99,
        "threads": 3,
        "device": "cpu",
    }


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    screen = answer.Screen(out)
    screen(Delta("hm", thinking=True))
    assert out.getvalue() == "\x1b[2mhm" and screen.open_line and screen.dim
    screen.end()
    assert out.getvalue() == "\x1b[2mhm\x1b[0m\n" and not screen.open_line and not screen.dim
    screen.end()
    screen(Delta("a\x1b[1m\tb\n"))
    screen.end()
    assert out.getvalue() == "\x1b[2mhm\x1b[0m\na[1m\tb\n"


def test_thinking_goes_aside_where_no_terminal_is():
    out, aside = io.StringIO(), io.StringIO()
    screen = answer.Screen(out, aside)
    for piece in (Delta("why", thinking=True), Delta("so")):
        screen(piece)
    screen(Delta(""))
    screen.end()
    assert (out.getvalue(), aside.getvalue()) == ("so\n", "why")


# ------------------------------------------------------------------------------------------------ progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(out):
    return out.getvalue().split("\r\x1b[K")[-1]


def test_time_left_is_told_after_a_second(clock):
    out = io.StringIO()
    progress = Progress(live=True, out=out, clock=clock)
    progress("load", 1e9, 4e9)
    assert shown(out) == "load 1.00 of 4.00 GB" and progress.visible
    clock.now += 0.99
    progress("load", 1.5e9, 4e9)
    assert shown(out) == "load 1.50 of 4.00 GB"
    clock.now += 0.05
    progress("load", 1.9e9, 4e9)  # too soon after the last
    assert shown(out) == "load 1.50 of 4.00 GB"
    clock.now += 0.96
    progress("load", 2e9, 4e9)
    assert shown(out) == "load 2.00 of 4.00 GB · 2 s left"
    clock.now += 0.125
    progress("load", 4e9, 4e9)
    assert shown(out) == "load 4.00 of 4.00 GB"
    progress("generate", 1, 9)
    assert shown(out) == "" and not progress.visible
    before = out.getvalue()
    progress.clear()
    assert out.getvalue() == before


def test_a_prompt_starts_after_the_file(clock):
    out = io.StringIO()
    progress = Progress(live=True, out=out, clock=clock)
    progress("read", 1, 1)
    clock.now += 50
    progress("decode", 1, 10)
    assert shown(out) == "decode 1 of 10 frames"
    clock.now += 2
    progress("vision", 1, 5)
    assert shown(out) == "decode 1 of 10 frames · vision 1 of 5 frame pairs · 8 s left"
    clock.now += 2
    progress("decode", 5, 10)
    assert shown(out) == "decode 5 of 10 frames · vision 1 of 5 frame pairs · 16 s left"
    clock.now += 1
    progress("prefill", 0, 5000)
    assert shown(out).endswith("· prefill 0 of 5,000 tokens")
    clock.now += 1
    progress("other", 1, 2)
    assert "· other 1 of 2" in shown(out)


def test_plain_lines_come_when_a_stage_ends(clock):
    out = io.StringIO()
    progress = Progress(live=False, out=out, clock=clock)
    progress("vision", 1, 2)
    clock.now += 61.5
    progress("vision", 2, 2)
    assert out.getvalue() == "ivlite: vision 2 of 2 frame pairs after 1:02\n"
    progress("convert", 3e9, 3e9)
    assert out.getvalue().splitlines()[-1] == "ivlite: convert 3.00 of 3.00 GB after 0 s"


def test_rounds_count_prompts(clock):
    out = io.StringIO()
    meter = PromptProgress(True, "tested", out=out, clock=clock)
    meter("load", 1e9, 2e9)
    assert shown(out) == "load 1.00 of 2.00 GB"
    meter.begin(2, 10)
    clock.now += 4
    meter("prefill", 100, 2000)
    assert shown(out) == "tested 2 of 10 prompts · prefill 100 of 2,000 tokens"
    meter.finished()
    meter.finished()
    clock.now += 0.0625
    meter("decode", 1, 2)
    assert shown(out) == "tested 2 of 10 prompts · prefill 100 of 2,000 tokens"  # too soon
    clock.now += 0.0625
    meter("decode", 1, 2)
    assert shown(out) == "tested 4 of 10 prompts · decode 1 of 2 frames · 12 s left" and meter.visible
    for _ in range(6):
        meter.finished()
    clock.now += 1
    meter("vision", 1, 1)
    assert shown(out) == "tested 10 of 10 prompts · vision 1 of 1 frame pairs"


def test_plain_rounds_are_a_line_each(clock):
    out = io.StringIO()
    meter = PromptProgress(False, "read", out=out, clock=clock)
    meter.begin(0, 3)
    meter("prefill", 1, 1)
    clock.now += 10
    meter.finished()
    assert out.getvalue() == "ivlite: read 1 of 3 prompts · 20 s left\n"


@pytest.mark.parametrize("quiet, verbose, terminal, made", [
    (False, False, "xterm", True), (False, False, "dumb", False), (False, True, "xterm", False), (False, True, None, False),
    (False, False, None, None), (True, True, "xterm", None),
])  # fmt: skip
def test_who_sees_progress(monkeypatch, quiet, verbose, terminal, made):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("TERM", terminal or "xterm")
    meter = prompts.meter(SimpleNamespace(quiet=quiet, verbose=verbose), "read")
    assert (meter and meter.live) == made


@pytest.mark.parametrize("drafted, accepted, verbose, told", [
    (1200, 1100, True, True), (0, 0, True, False), (1200, 1100, False, False), (7, 0, True, True),
])  # fmt: skip
def test_drafts_are_told_where_there_were_any(capsys, drafted, accepted, verbose, told):
    class Streamed(list):
        reply, prompt = reply(), SimpleNamespace(plan=SimpleNamespace(videos=()), media=[], spans=[], token_ids=[1])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    stream = Streamed()
    stream.reply.usage.update(draft_tokens=drafted, accepted_tokens=accepted)
    args = SimpleNamespace(verbose=verbose, quiet=False)
    answer.show(SimpleNamespace(threads=2, kv="q8"), stream, args, None)
    line = f"{accepted:,} of {drafted:,} drafted tokens were accepted"
    assert (line in capsys.readouterr().err) == told
