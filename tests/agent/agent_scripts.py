"""Films, and a model whose tokens are given: everything but the choice of tokens is the real thing."""

import json

import av
import numpy as np
from PIL import Image, ImageDraw

from ivlite.agent.agent import Agent
from ivlite.agent.apart import Apart
from ivlite.agent.record import Record

SIZE = (64, 96)


def film(path, seconds=30, rate=5, words="", text_from=0.0):
    """A video: a red square on grey that is blue from the middle on; `words` are drawn over it from text_from on."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        for n in range(round(seconds * rate)):
            picture = np.full((*SIZE, 3), 90, np.uint8)
            at = n * 2 % 80
            picture[20:36, at : at + 16] = (220, 30, 30) if n < seconds * rate / 2 else (30, 30, 220)
            if words and n / rate >= text_from:
                image = Image.fromarray(picture)
                ImageDraw.Draw(image).text((1, 1), words, fill=(255, 255, 255))
                picture = np.asarray(image)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return str(path)


def uneven(path, times):
    """A video whose frames are on screen at given times."""
    from fractions import Fraction

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1000)
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for n, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), n * 5 % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(t * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return str(path)


def call(tool, /, **arguments):
    """The text of a reply that calls a tool."""
    return f'<tool_call>\n{{"name": {json.dumps(tool)}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def finish(answer="It turns blue [E1].", ids=("E1",), claims=None, confidence="mid", **more):
    claims = [{"text": "It turns blue", "evidence": list(ids)}] if claims is None else claims
    return call("finish", answer=answer, claims=claims, confidence=confidence, **more)


class Scripted(Agent):
    """An Agent whose model says what a script says.

    replies: the texts of its replies in order; after the last one it answers by itself. apart(text, frames): what is said of a
    question apart, a text; or the odds of a yes, a float; None for what the model itself says.
    """

    def __init__(self, model, videos, replies, apart=None, **more):
        super().__init__(model, videos, **more)
        self.replies, self.seen = list(replies), []
        stream, model_ids = self.context._stream, model.tokenizer

        def told(messages, whole, **settings):
            self.seen.append([*map(dict, messages)])
            if "told" not in settings and self.replies:
                settings["told"] = model_ids.encode(self.replies.pop(0), list(model_ids.added))
                settings["enable_thinking"] = False  # scripts have no thoughts
            return stream(messages, whole, **settings)

        self.context._stream = told
        self.case.apart = apart


def scripted_apart(monkeypatch):
    """Makes questions apart follow the scripts of their agents."""
    odds, stream = Apart.odds, Apart._stream

    def scripted_odds(self, parts, text):
        real = odds(self, parts, text)  # the frames are looked at whatever the script says
        found = self.case.apart(text, parts) if getattr(self.case, "apart", None) else None
        return real if found is None else found

    def scripted_stream(self, parts, text, **settings):
        found = self.case.apart(text, parts) if getattr(self.case, "apart", None) else None
        if isinstance(found, str) and settings.get("max_new_tokens") != 1:
            settings["told"] = self.case.model.tokenizer.encode(found)
        return stream(self, parts, text, **settings)

    monkeypatch.setattr(Apart, "odds", scripted_odds)
    monkeypatch.setattr(Apart, "_stream", scripted_stream)


def kept():
    """(a list of steps, a Record that adds to it)."""
    steps = []
    return steps, Record(write=lambda number, kind, data: steps.append((kind, json.loads(json.dumps(data)))))


def kinds(answer):
    return [type(event).__name__ for event in answer.steps]


def results(answer):
    """The texts of the results, as data."""
    return [json.loads(event.text) for event in answer.steps if type(event).__name__ == "Result"]
