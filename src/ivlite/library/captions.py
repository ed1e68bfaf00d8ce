"""What a model says of segments of videos: the Captioner of an index."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ivlite.engine.batch import together
from ivlite.errors import Stopped

NEW_TOKENS = 96  # of a caption
TOGETHER = 4  # captions that are written at once: one pass over the weights gives a token of each
CAPTION = (
    "Describe what is seen in this part of a video in one or two short sentences: who or what, what happens, where, and any "
    "text that can be read."
)
ENDS = ("stop", "length", "repetition")  # of an answer that was not stopped


class Captions:
    """A Captioner. name: what the library calls it. model(): an ivlite.Model. budget: most vision tokens of a segment.

    opened(path): the source of the segments of a file.
    """

    together = TOGETHER

    def __init__(self, name: str, model: Callable[[], Any], budget: int,
                 opened: Callable[[Any], Any] = lambda path: path) -> None:  # fmt: skip
        self.name, self._model, self._opened = name, model, opened
        self._settings = {"budget": budget, "max_new_tokens": NEW_TOKENS, "temperature": 0}

    def captions(self, source: Any, spans: Sequence[tuple[float, float]]) -> Iterator[tuple[int, str]]:
        """See indexing.Captioner."""
        streams = [self._stream(self._opened(source), start, end) for start, end in spans]
        for _ in together(streams):
            pass
        ended = [stream.reply.finish_reason in ENDS for stream in streams]
        yield from ((i, stream.reply.text) for i, stream in enumerate(streams) if ended[i])
        if not all(ended):
            raise Stopped.because(streams[ended.index(False)].reply.finish_reason)

    def _stream(self, source: Any, start: float, end: float) -> Any:
        content = [{"type": "video", "video": source, "start": start, "end": end}, {"type": "text", "text": CAPTION}]
        return self._model().stream([{"role": "user", "content": content}], **self._settings)
