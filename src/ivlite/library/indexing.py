"""What a library learns of a video: its subtitles, what is said, and what a model sees in each segment.

Each part is kept as soon as it is known. What is there already is not done again, so a killed index goes on where it was.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ivlite import files, media
from ivlite.errors import MediaError
from ivlite.library import Library, Segment, digest_of
from ivlite.media import speech, subtitles
from ivlite.media.probe import Probe
from ivlite.media.scenes import scenes

T = TypeVar("T")
TRACKS = "tracks"  # the source that says that the tracks of a file were read
FPS = 2  # of frames without times
Progress = Callable[[str, int, int], Any]


class Captioner(Protocol):
    """Something that says what is seen. name: what the library calls it. together: parts that it describes at once, at most."""

    name: str
    together: int

    def captions(self, source: Any, spans: Sequence[tuple[float, float]]) -> Iterator[tuple[int, str]]:
        """Yields (index, what is seen) of parts of a video, in any order. Raises MediaError, ContextError, Stopped."""


@dataclass
class Indexed:
    """What is known of a video, and what of it is new. id: in the library. cues: of subtitles and speech, by kind.

    segments, captioned: how many there are, and have been seen by a model. new: how many cues and captions were added.
    first: whether nothing was known of it before.
    notes: sentences for the user. every: seconds between the frames that were compared to find cuts, 0 where they were not.
    """

    id: int
    path: str
    duration: float
    cues: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    captioned: int = 0
    new: int = 0
    first: bool = False
    every: float = 0.0
    cuts: int = 0
    notes: list[str] = field(default_factory=list)


def texts(library: Library, path: Any, probe: Probe | None = None, engine: speech.Engine | None = None,
          progress: Progress | None = None) -> Indexed:  # fmt: skip
    """Reads the subtitles of a video into a library, and what is said with an engine, unless they are there already.

    probe: of the video, opened if None. progress: stages "read" (bytes) and "speech" (seconds). Raises MediaError (the
    file), ModelFileError (the engine), Stopped.
    """
    path = os.path.abspath(os.fsdecode(path))
    probe = media.probe(path, fps=FPS) if probe is None else probe
    duration = float(probe.times.duration)
    digest = _digest(path, progress)
    changed = library.changed(path, digest)
    known = library.known(digest)
    moved = known is not None and known.path != path
    done = Indexed(library.add_video(path, digest, duration, title=os.path.basename(path)), path, duration)
    if changed:
        done.notes.append(
            f"video {path} has changed since it was remembered: what is known of the earlier one is kept, and not used"
        )
    _subtitles(library, done, probe, moved)
    if engine is not None and engine.name not in library.sources(done.id, "speech"):
        cues = speech.transcribe(path, engine, duration, progress)
        done.new += library.add_texts(done.id, "speech", cues, engine.name)
    for kind in ("subtitle", "speech"):
        if count := library.count(done.id, kind):
            done.cues[kind] = count
    return done


def captions(library: Library, done: Indexed, probe: Probe, captioner: Captioner, again: bool = False,
             progress: Progress | None = None) -> Iterator[Segment]:  # fmt: skip
    """Yields the segments of a video as they are captioned, spread over the video: stopped early, they still cover it.

    again: also those that have a caption. progress: stages "scenes" (frames) and "caption" (segments). Raises MediaError,
    ContextError, Stopped.
    """
    segments = library.segments(done.id)
    if not segments:
        found = scenes(probe, progress)
        done.every, done.cuts = found.every, found.cuts
        segments = library.add_segments(done.id, found.spans)
    done.segments = len(segments)
    done.captioned = sum(segment.maker is not None for segment in segments)
    waiting = [segment for segment in segments if again or segment.maker is None]
    order, n = spread(waiting), 0
    for first in range(0, len(order), captioner.together):
        group = order[first : first + captioner.together]
        if progress:
            progress("caption", n, len(waiting))
        for i, text in captioner.captions(done.path, [(segment.start, segment.end) for segment in group]):
            library.caption(group[i], done.id, text, captioner.name)
            done.captioned += group[i].maker is None
            done.new, n = done.new + 1, n + 1
            yield group[i]
    if progress and waiting:
        progress("caption", len(waiting), len(waiting))


def spread(items: Sequence[T]) -> list[T]:
    """Items in an order in which any first few of them are spread evenly: by the bits of their indexes, reversed."""
    bits = max(1, len(items) - 1).bit_length()
    order = sorted(range(len(items)), key=lambda i: int(format(i, f"0{bits}b")[::-1], 2))
    return [items[i] for i in order]


def _digest(path: str, progress: Progress | None) -> bytes:
    if progress is None:
        return digest_of(path)
    try:
        return files.content_digest(path, lambda done, total: progress("read", done, total))
    except OSError as error:
        raise MediaError(f"video {path} cannot be read: {files.reason(error)}") from error


def _subtitles(library: Library, done: Indexed, probe: Probe, moved: bool) -> None:
    """Reads the tracks of a file once, and the files beside it whenever they are others than before."""
    known = library.sources(done.id, "subtitle")
    done.first = TRACKS not in known
    if done.first:
        try:
            tracks, skipped = probe.tracks()
            done.notes += skipped
            for track in tracks:
                done.new += _add(library, done, track, "")
        except MediaError as error:
            done.notes.append(str(error))
        library.add_texts(done.id, "subtitle", (), TRACKS)
    beside = {os.path.basename(file): file for file in probe.beside(done.path)}
    for name, file in beside.items():
        try:
            mark = files.content_digest(file).hex()
            if known.get(name) != mark:
                done.new += _add(library, done, probe.read(file), mark)
        except MediaError as error:
            done.notes.append(str(error))
        except OSError as error:
            done.notes.append(f"subtitles {file} cannot be read: {files.reason(error)}")
    for name in known if not moved else ():
        if name != TRACKS and not name.startswith("track ") and name not in beside:
            library.forget_texts(done.id, "subtitle", name)  # the file is gone


def _add(library: Library, done: Indexed, found: subtitles.Subtitles, mark: str) -> int:
    done.notes += found.notes
    facts = {"language": found.language, "format": found.format, "charset": found.charset, "title": found.title}
    bad = {name: count for name, count in found.counts.items() if count}
    return library.add_texts(done.id, "subtitle", found.cues, found.source, mark, **facts, counts=bad)
