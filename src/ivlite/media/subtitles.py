"""Subtitles of a video: of its own tracks, and of the files beside it."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import av
from av.stream import Discard, Disposition

from ivlite import files
from ivlite.errors import MediaError, sentence
from ivlite.media import charset, subtitle_files
from ivlite.media.container import ERRORS, OPTIONS
from ivlite.media.cues import COUNTED, MOST_CUES, Collector, Cue, remarks
from ivlite.media.source import local_path
from ivlite.stop import checkpoint

__all__ = ["COUNTED", "Cue", "Subtitles", "beside", "of_tracks", "of_video", "read"]

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa", ".sub", ".smi", ".sami", ".ttml", ".dfxp", ".mpl", ".sup")
PICTURES = ("dvdsub", "dvd_subtitle", "pgssub", "hdmv_pgs_subtitle", "dvbsub", "dvb_subtitle", "xsub")
MOST_BYTES = 256 << 20  # of a file that is read
MOST_LINES = 1_000_000  # of a file: as many cues as are kept have hardly more
LONGEST_LINE = 8_192  # characters
PIECE = 1 << 20
SAMPLE = 16 << 10  # bytes of lines beyond ASCII that tell the character set
MOST_FILES = 20  # beside a video
LABEL = re.compile(r"(\.[^.]{1,24}){0,3}")
# Languages as they are named in files, to their codes of two letters.
LANGUAGES = {
    "en": "eng english", "de": "deu ger german deutsch", "fr": "fra fre french francais", "es": "spa spanish espanol", "it": "ita italian",
    "pt": "por portuguese pob", "nl": "nld dut dutch", "sv": "swe swedish", "da": "dan danish", "no": "nor nob norwegian", "fi": "fin finnish",
    "is": "isl ice icelandic", "pl": "pol polish", "cs": "ces cze czech", "sk": "slk slo slovak", "hu": "hun hungarian", "ro": "ron rum romanian",
    "hr": "hrv croatian", "sl": "slv slovenian", "tr": "tur turkish", "lt": "lit lithuanian", "lv": "lav latvian", "et": "est estonian",
    "ru": "rus russian", "uk": "ukr ukrainian", "bg": "bul bulgarian", "sr": "srp scc serbian", "el": "ell gre greek", "he": "heb iw hebrew",
    "ar": "ara arabic", "fa": "fas per persian farsi", "th": "tha thai", "vi": "vie vietnamese", "hi": "hin hindi", "id": "ind indonesian",
    "zh": "zho chi chinese chs cht cn", "ja": "jpn japanese jp", "ko": "kor korean kr", "ca": "cat catalan",
}  # fmt: skip
CODES = {name: code for code, names in LANGUAGES.items() for name in (code, *names.split())}


@dataclass(frozen=True)
class Subtitles:
    """The cues of one track or file, in order of time.

    source: "talk.en.srt", or "track 2". language: its code of two letters, "" where nothing says it. title: of a track.
    format: "srt", "vtt", "ass", "mov_text" and so on. charset: how the file was read, and how that was found. counts: how many
    cues were mended or left out, by reason (COUNTED). notes: the same as sentences for a person. path: of a file; None for a
    track.
    """

    cues: tuple[Cue, ...]
    source: str
    language: str = ""
    title: str = ""
    format: str = ""
    charset: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class Found:
    """All subtitles of a video. skipped: sentences about those that cannot be read as text."""

    tracks: tuple[Subtitles, ...]
    skipped: tuple[str, ...]


def of_video(path: Any, duration: float | None = None, rate: float | None = None) -> Found:
    """The subtitles in a video file and in the files beside it. What cannot be read is said in `skipped`, and no error.

    duration: seconds of the video, within which cues are cut. rate: its frames per second, for files that count frames.
    Raises MediaError (the video file), Stopped.
    """
    tracks, skipped = of_tracks(path, duration)
    for file in beside(path):
        try:
            tracks.append(read(file, duration, rate))
        except MediaError as error:
            skipped.append(str(error))
    return Found(tuple(tracks), tuple(skipped))


def read(source: Any, duration: float | None = None, rate: float | None = None) -> Subtitles:
    """The Subtitles of a file: of subtitles in any usual format, or of the track that a player shows of a video.

    duration, rate: as for of_video. Raises MediaError where it is neither, or cannot be read.
    """
    path, name = local_path(source, "subtitles")
    with _file(path, name) as file:
        head = file.read(4096)
        if not _pictures(head):
            found = _text(file, head, path, name, duration, rate)
            if found is not None:
                return found
    tracks: list[Subtitles] = []
    with suppress(MediaError):
        tracks, _ = of_tracks(path, duration)
    if tracks:
        return tracks[0]
    what = "holds subtitles as pictures" if _pictures(head) else "is no subtitle file that ivlite reads"
    raise MediaError(f"{name} {what} (srt, vtt, ass, sub and the like are read): convert it to srt")


# ------------------------------------------------------------------------------------------------ files


def beside(path: Any) -> list[str]:
    """The paths of the subtitle files beside a video: its name with the suffix of a subtitle, and perhaps a language."""
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    stem = os.path.splitext(name)[0]
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith(stem))
    except OSError:
        return []
    others = [s for n in names if (s := os.path.splitext(n)[0]) != stem and _is_video(n) and s.startswith(stem + ".")]
    found = []
    for other in names:
        root = os.path.splitext(other)[0]
        if named_for(other, name) and not any(root == s or root.startswith(s + ".") for s in others):
            found.append(os.path.join(folder, other))
    return found[:MOST_FILES]


def named_for(name: str, video: str) -> bool:
    """Whether a file's name is one of subtitles of a video: names without folders."""
    root, suffix = os.path.splitext(name)
    stem = os.path.splitext(video)[0]
    if suffix.lower() not in SUFFIXES or not root.startswith(stem):
        return False
    return LABEL.fullmatch(root[len(video if root.startswith(video) else stem) :]) is not None


def _is_video(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix != "" and suffix not in SUFFIXES and suffix not in (".idx", ".json", ".jpg", ".png", ".nfo")


def language_of(name: str) -> str:
    """The code of the language that the parts of a file's name say, the last first; "" if none does."""
    for part in reversed(re.split(r"[._ \-\[\]()]", os.path.splitext(name)[0].lower())[1:]):
        if part in CODES:
            return CODES[part]
    return ""


def _file(path: str, name: str) -> Any:
    try:
        return files.opened(path)
    except OSError as error:
        raise MediaError(f"subtitles {name} cannot be read ({error.strerror}): check the path") from error


def _pictures(head: bytes) -> bool:
    """Whether a file begins as subtitles do that are pictures: VobSub, PGS."""
    return head.startswith((b"\0\0\1\xba", b"PG", b"# VobSub index"))


def _text(file: Any, head: bytes, path: str, name: str, duration: float | None, rate: float | None) -> Subtitles | None:
    """The Subtitles of a text file; None where it is no such file."""
    base, notes = os.path.basename(path), list[str]()
    language = language_of(base)
    codec, how = _charset(file, head, language)
    file.seek(0)
    text = io.TextIOWrapper(file, codec, "replace", newline=None)
    try:
        start = text.read(4096)
        if not charset.is_text(start):
            return None
        text.seek(0)
        form, found = subtitle_files.cues(_lines(text, base, notes), rate)
        if not form:
            return None
        cues, counts = _collected(found, duration, base, notes)
    except (OSError, UnicodeError) as error:
        raise MediaError(f"subtitles {name} cannot be read ({error}): copy the file again") from error
    finally:
        text.detach()
    said = f"{charset.shown(codec)} ({how})" if how else charset.shown(codec)
    if how == "guessed":
        notes.insert(0, f"{base} is read as {charset.shown(codec)}, a guess: it is not UTF-8")
    return Subtitles(cues, base, language, "", form, said, counts, tuple(notes), path)


def _charset(file: Any, head: bytes, language: str) -> tuple[str, str]:
    """(codec, how it was found) of a file: what it says or shows, else UTF-8 where that is valid, else a guess."""
    if codec := charset.marked(head):
        return codec, "byte order mark" if head[:2] in (
            b"\xff\xfe",
            b"\xfe\xff",
        ) else "" if codec == "utf-8-sig" else "no byte order mark"
    valid = invalid = size = 0
    sample, rest = bytearray(), b""
    file.seek(0)
    while (piece := file.read(PIECE)) and size < MOST_BYTES:
        checkpoint()
        size += len(piece)
        whole, _, rest = (rest + piece).rpartition(b"\n")
        rest = rest[-PIECE:]
        if whole.isascii() and b"\x1b$" not in whole:
            continue
        good, bad = _utf8(whole)
        valid, invalid = valid + good, invalid + bad
        if len(sample) < SAMPLE:
            lines = (line[:LONGEST_LINE] for line in whole.split(b"\n") if not line.isascii() or b"\x1b" in line)
            sample += b"\n".join(lines)[:SAMPLE] + b"\n"
    good, bad = _utf8(rest)
    valid, invalid = valid + good, invalid + bad
    sample += rest[:LONGEST_LINE] if not rest.isascii() else b""
    if b"\x1b$" not in sample and invalid <= valid // 20:
        return "utf-8", "" if not invalid else f"with {invalid:,} damaged characters"
    return charset.guess(bytes(sample), language)[0], "guessed"


def _utf8(data: bytes) -> tuple[int, int]:
    """(characters beyond ASCII, errors) of bytes as UTF-8."""
    text = data.decode("utf-8", "replace")
    wrong = text.count("�")
    return len(text) - len(text.encode("ascii", "ignore")) - wrong, wrong


def _lines(text: io.TextIOWrapper, name: str, notes: list[str]) -> Iterator[str]:
    """The lines of a file; long ones in pieces, and of a huge file the first ones, which is noted."""
    size = 0
    for _ in range(MOST_LINES):
        line = text.readline(LONGEST_LINE)
        if not line:
            return
        size += len(line)
        if size > MOST_BYTES:
            break
        yield line
    notes.append(f"{name} is too long: only its first {size:,} characters are read")


def _collected(
    found: Iterable[tuple[float | None, float | None, str]], duration: float | None, name: str, notes: list[str]
) -> tuple[tuple[Cue, ...], dict[str, int]]:
    """(cues, counts) of what was read; adds sentences about them to `notes`."""
    collector = Collector()
    for row in found:
        if not collector.add(*row):
            notes.append(f"{name} has more than {MOST_CUES:,} cues: the others are left out")
            break
    cues, hours = collector.finish(duration)
    if hours:
        notes.append(f"the times of {name} are {hours} h ahead of the video: they are shifted back")
    if said := remarks(collector.counts):
        notes.append(usable(name, cues, said))
    elif not cues:
        notes.append(f"{name} gives 0 cues: it has no text with times")
    return cues, collector.counts


def usable(name: str, cues: tuple[Cue, ...], said: list[str]) -> str:
    return f"{name} gives {len(cues):,} cue{'' if len(cues) == 1 else 's'}; it has {', '.join(said)}"


# ------------------------------------------------------------------------------------------------ tracks


def of_tracks(path: Any, duration: float | None = None) -> tuple[list[Subtitles], list[str]]:
    """(Subtitles of the text tracks in a video file, the one that a player shows first; sentences about the other tracks).

    Reads the file from its start to its end. Raises MediaError (it cannot be opened), Stopped.
    """
    path, name = local_path(path, "video")
    skipped: list[str] = []
    try:
        with av.open("file:" + path, options=dict(OPTIONS), metadata_errors="replace") as container:
            chosen = [s for s in container.streams.subtitles if _readable(s, skipped)]
            collectors = _decoded(container, chosen)
            return [_track(s, c, duration) for s, c in sorted(collectors, key=lambda pair: _rank(pair[0]))], skipped
    except ERRORS as error:
        raise MediaError(f"the subtitles of video {name} cannot be read: {sentence(error, 100)}") from error


def _readable(stream: Any, skipped: list[str]) -> bool:
    codec = stream.codec_context
    if codec is not None and codec.name not in PICTURES:
        return True
    kind = "of a kind that this PyAV does not decode" if codec is None else f"pictures ({codec.name}) and no text"
    language = CODES.get(stream.metadata.get("language", "").lower(), "")
    skipped.append(f"subtitle track {stream.index}{f' ({language})' if language else ''} is {kind}: it is left out")
    return False


def _rank(stream: Any) -> tuple[bool, bool]:
    shown = stream.disposition
    return bool(shown & Disposition.forced), not shown & Disposition.default


def _decoded(container: Any, streams: list[Any]) -> list[tuple[Any, Collector]]:
    """The cues of streams as (stream, Collector)."""
    collectors = {stream.index: Collector() for stream in streams}
    for stream in container.streams:
        if stream.index not in collectors:
            stream.discard = Discard.all
    if not streams:
        return []
    zero = first_time(container)
    try:
        for packet in container.demux(streams):
            checkpoint()
            if packet.size:
                _take(packet, collectors[packet.stream.index], zero)
    except ERRORS:  # the file is cut off: what came before is used
        pass
    return [(stream, collectors[stream.index]) for stream in streams]


def first_time(container: Any) -> float:
    """Seconds of the first picture: the zero of the video's time."""
    for stream in container.streams.video:
        if stream.start_time is not None and not stream.disposition & Disposition.attached_pic:
            return float(stream.start_time * stream.time_base)
    return (container.start_time or 0) / 1e6


def _take(packet: Any, collector: Collector, zero: float) -> None:
    """Adds the cues of a packet."""
    try:
        rects = packet.stream.codec_context.decode2(packet) or ()
        texts = [rect.dialogue.decode("utf-8", "replace") for rect in rects if rect.type != b"bitmap"]
    except ERRORS:
        collector.counts["broken"] += 1
        return
    start = None if packet.pts is None else float(packet.pts * packet.time_base) - zero
    end = start + float(packet.duration * packet.time_base) if start is not None and packet.duration else None
    for text in texts:
        collector.add(start, end, text)


def _track(stream: Any, collector: Collector, duration: float | None) -> Subtitles:
    source, notes = f"track {stream.index}", list[str]()
    cues, hours = collector.finish(duration)
    if hours:
        notes.append(f"the times of subtitle {source} are {hours} h ahead of the video: they are shifted back")
    if said := remarks(collector.counts):
        notes.append(usable(f"subtitle {source}", cues, said))
    data = stream.metadata
    return Subtitles(
        cues, source, CODES.get(data.get("language", "").lower(), ""), data.get("title", ""), stream.codec_context.name, "utf-8",
        collector.counts, tuple(notes),
    )  # fmt: skip
