"""The memory of ivlite: one file that knows videos by their content, what is said and seen in them, and what was asked."""

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from ivlite import files
from ivlite.errors import DiskError, MediaError, UsageError, shown
from ivlite.files import reason
from ivlite.library.database import Database, place
from ivlite.library.schema import KINDS
from ivlite.library.searching import STALE, Hit, Where, clean, scored, search
from ivlite.numbers import number, whole

__all__ = ["KINDS", "Hit", "Library", "Run", "Segment", "Step", "Video"]

LONGEST = 10_000  # characters of a text
STATES = ("running", "done", "failed")


@dataclass(frozen=True)
class Video:
    """A video by its content. digest: 32 bytes; path: where it was seen last; duration: seconds; meta: plain data."""

    id: int
    digest: bytes
    path: str
    duration: float
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """A part of a video. start, end: seconds. maker: what captioned it, None if nothing has; caption: "" where nothing was said."""

    id: int
    start: float
    end: float
    maker: str | None = None
    caption: str = ""


@dataclass(frozen=True)
class Step:
    """A step of a run that has finished. number: from 1; kind: a word; data: plain data."""

    number: int
    kind: str
    data: Any


@dataclass(frozen=True)
class Run:
    """A question that was worked on. state: "running" (or it was killed), "done" or "failed". data: plain data of its beginning.

    used: when it was last written, seconds since 1970.
    """

    id: str
    question: str
    state: str
    data: dict[str, Any]
    steps: tuple[Step, ...]
    used: float


class Library:
    """Videos, texts, notes and runs in one SQLite file. Any process and any thread may use it at any time.

    Times are seconds of a video. Each call that writes is one transaction: a kill at any moment leaves the file whole.
    `kept` is False where nothing can be written: then everything is held in memory, and one warning says so.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, warn: Callable[[str], None] | None = None,
             strict: bool = False) -> Self:  # fmt: skip
        """Opens the library in a file, or the user's own; makes it if it is missing.

        path: None for $XDG_DATA_HOME/ivlite/library.sqlite; another one must not be a file of another kind or program. warn:
        called with sentences for the user: a library that is damaged or of a newer ivlite is set aside under another name, and a
        new one begins; a file that cannot be written is held in memory instead, unless `strict`: then that is a DiskError.
        Raises UsageError, DiskError (the path).
        """
        reasons: list[str] = []
        say = warn or (lambda sentence: None)
        found = place(path, reasons.append if strict else say)
        if found is None and strict:
            raise DiskError(reasons[0])
        return cls(Database(found, say, strict, named=path is not None))

    @classmethod
    def in_memory(cls) -> Self:
        """An empty library that is kept nowhere."""
        return cls(Database(None, lambda sentence: None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @property
    def path(self) -> str | None:
        """The path of the file; None in memory."""
        return self._database.path

    @property
    def kept(self) -> bool:
        """Whether what is written stays after this process."""
        return self._database.kept

    # -------------------------------------------------------------------------------------------- videos

    def add_video(self, path: str | os.PathLike[str], digest: bytes | None = None, duration: float = 0.0,
                  **meta: Any) -> int:  # fmt: skip
        """The id of a video; adds it if its content is new. digest: `files.content_digest` of the file, read if None.

        Raises MediaError (the file), Stopped.
        """
        digest = digest_of(path) if digest is None else bytes(digest)
        where, now = os.fsencode(os.path.abspath(path)), time.time()
        length, data = number("duration", duration, 0), _json(meta)

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT INTO video (digest, path, duration, added, used, meta) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (digest) "
                "DO UPDATE SET path = excluded.path, used = excluded.used, duration = max(duration, excluded.duration), "
                "meta = json_patch(meta, excluded.meta)",
                (digest, where, length, now, now, data),
            )  # fmt: skip
            return int(connection.execute("SELECT id FROM video WHERE digest = ?", (digest,)).fetchone()[0])

        return self._database.write(work)

    def find(self, path: str | os.PathLike[str]) -> Video | None:
        """The Video with the content that a file has now; None if it is not in the library. Raises MediaError, Stopped."""
        return self.known(digest_of(path))

    def known(self, digest: bytes) -> Video | None:
        """The Video of a content; None if it is not in the library."""
        return self._video("digest = ?", (digest,))

    def changed(self, path: str | os.PathLike[str], digest: bytes | None = None) -> bool:
        """Whether the library knows another content of this path, and not the present one: its memory is kept, and not used."""
        digest = digest_of(path) if digest is None else digest
        where = os.fsencode(os.path.abspath(path))
        known = [
            video.digest for video in self._database.rows(f"SELECT {VIDEO} FROM video WHERE path = ?", (where,), _video)
        ]
        return bool(known) and digest not in known and self.known(digest) is None

    def video(self, id: int) -> Video:
        """The Video of an id. Raises UsageError."""
        found = self._video("id = ?", (id,))
        if found is None:
            raise UsageError(f"the library has no video {shown(id)}")
        return found

    def videos(self) -> list[Video]:
        """All videos, the one used last first."""
        return self._database.rows(f"SELECT {VIDEO} FROM video ORDER BY used DESC, id DESC", make=_video)

    def current(self) -> list[Video]:
        """The videos whose path has not shown another content since, the one used last first."""
        return self._database.rows(
            f"SELECT {VIDEO} FROM video WHERE id NOT IN ({STALE}) ORDER BY used DESC, id DESC", make=_video
        )

    def forget(self, video: int) -> None:
        """Removes a video and what is known of it."""
        self._database.write(lambda connection: connection.execute("DELETE FROM video WHERE id = ?", (video,)))

    def _video(self, condition: str, values: Sequence[Any]) -> Video | None:
        found = self._database.rows(f"SELECT {VIDEO} FROM video WHERE {condition}", values, _video)
        return found[0] if found else None

    # -------------------------------------------------------------------------------------------- segments and texts

    def segments(self, video: int) -> list[Segment]:
        """The segments of a video, in order."""
        sql = (
            "SELECT segment.id, segment.start, segment.finish, segment.maker, coalesce(text.body, '') FROM segment "
            "LEFT JOIN text ON text.segment = segment.id WHERE segment.video = ? ORDER BY segment.start"
        )
        return self._database.rows(sql, (video,), _segment)

    def add_segments(self, video: int, spans: Iterable[tuple[float, float]]) -> list[Segment]:
        """The segments of a video; adds them if it has none."""
        rows = [(video, float(start), float(end)) for start, end in spans]

        def work(connection: sqlite3.Connection) -> None:
            if not connection.execute("SELECT 1 FROM segment WHERE video = ? LIMIT 1", (video,)).fetchone():
                connection.executemany("INSERT INTO segment (video, start, finish) VALUES (?, ?, ?)", rows)

        self._database.write(work)
        return self.segments(video)

    def caption(self, segment: Segment, video: int, text: str, maker: str) -> None:
        """Keeps what a model, `maker`, says of a segment, in place of an earlier caption."""
        row = (video, segment.id, segment.start, segment.end, _text(text))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM text WHERE segment = ?", (segment.id,))
            connection.execute("UPDATE segment SET maker = ? WHERE id = ?", (maker, segment.id))
            if row[-1]:
                connection.execute(
                    "INSERT INTO text (kind, video, segment, start, finish, body) VALUES ('caption', ?, ?, ?, ?, ?)",
                    row,
                )

        self._database.write(work)

    def sources(self, video: int, kind: str) -> dict[str, str]:
        """The sources of texts of a kind, {name: mark}: files and tracks, models."""
        return dict(
            self._database.rows("SELECT name, mark FROM source WHERE video = ? AND kind = ?", (video, _kind(kind)))
        )

    def add_texts(self, video: int, kind: str, cues: Iterable[Any], source: str, mark: str = "", **meta: Any) -> int:
        """Keeps texts of one source in place of its earlier ones; returns their number.

        cues: objects with start, end (seconds) and text. source: a name, such as that of a file. mark: tells its contents apart.
        """
        rows = [(cue.start, cue.end, text) for cue in cues if (text := _text(cue.text))]
        head = (video, _kind(kind), clean(source), mark, _json(meta))

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM source WHERE video = ? AND kind = ? AND name = ?", head[:3])
            sql = "INSERT INTO source (video, kind, name, mark, meta) VALUES (?, ?, ?, ?, ?)"
            made = connection.execute(sql, head).lastrowid
            connection.executemany(
                "INSERT INTO text (video, kind, source, start, finish, body) VALUES (?, ?, ?, ?, ?, ?)",
                [(video, kind, made, *row) for row in rows],
            )
            return len(rows)

        return self._database.write(work)

    def forget_texts(self, video: int, kind: str, source: str) -> None:
        """Removes the texts of a source that is gone."""
        values = (video, _kind(kind), clean(source))
        sql = "DELETE FROM source WHERE video = ? AND kind = ? AND name = ?"
        self._database.write(lambda connection: connection.execute(sql, values))

    def note(self, video: int, text: str, evidence: Sequence[str] = (), *, start: float = 0.0, end: float | None = None,
             run: str = "") -> int:  # fmt: skip
        """Keeps a finding about a part of a video; returns its id. evidence: ids of the run that found it. Raises UsageError."""
        body = _text(text)
        if not body:
            raise UsageError("the note is empty")
        finish = start if end is None else end
        more = (_json(list(evidence)), run, time.time())

        def work(connection: sqlite3.Connection) -> int:
            same = connection.execute(
                "SELECT id FROM text WHERE video = ? AND kind = 'note' AND start = ? AND finish = ? AND body = ?",
                (video, start, finish, body),
            ).fetchone()
            if same:
                return int(same[0])
            sql = "INSERT INTO text (video, kind, start, finish, body) VALUES (?, 'note', ?, ?, ?)"
            made = connection.execute(sql, (video, start, finish, body)).lastrowid
            connection.execute("INSERT INTO note (id, evidence, run, added) VALUES (?, ?, ?, ?)", (made, *more))
            return int(made or 0)

        return self._database.write(work)

    def search(self, query: str, videos: Iterable[int] | None = None, start: float | None = None, end: float | None = None,
               kinds: Iterable[str] | None = None, k: int = 10) -> list[Hit]:  # fmt: skip
        """The k texts that match a query best: all of its words, else substrings, else some of them.

        A query is words; several in double quotes are one. Nothing in it is an operator. A word that few texts hold counts more
        than one that many hold. videos: ids (None: all of `current`). start, end: seconds; texts that overlap them. kinds: of KINDS. Raises
        UsageError.
        """
        if not isinstance(query, str):
            raise UsageError(f"the query is {shown(query)}; it must be text")
        kinds = None if kinds is None else [_kind(kind) for kind in kinds]
        where = Where.of(videos, start, end, kinds)
        return search(self._database, query, where, whole("k", k, 1, 10_000))

    def texts(self, video: int, kinds: Iterable[str] | None = None, start: float | None = None, end: float | None = None,
              most: int = 1_000_000) -> list[Hit]:  # fmt: skip
        """The texts of a video in order of time, as Hits of score 1."""
        kinds = None if kinds is None else [_kind(kind) for kind in kinds]
        where = Where.of([video], start, end, kinds)
        sql = f"SELECT id, video, kind, start, finish, body FROM text WHERE 1{where.sql} ORDER BY start, id LIMIT ?"
        return self._database.rows(sql, (*where.values, most), partial(scored, {}))

    def count(self, video: int, kind: str | None = None) -> int:
        """The number of texts of a video."""
        where = Where.of([video], None, None, None if kind is None else [_kind(kind)])
        found = self._database.rows(f"SELECT count(*) FROM text WHERE 1{where.sql}", where.values, int)
        return int(found[0])

    # -------------------------------------------------------------------------------------------- runs

    def begin_run(self, question: str, **data: Any) -> str:
        """Begins a run; returns its id. data: plain data that a later process needs to go on."""
        made, now = secrets.token_hex(4), time.time()
        row = (made, clean(question), _json(data), now, now)
        sql = "INSERT INTO run (id, question, state, data, added, used) VALUES (?, ?, 'running', ?, ?, ?)"
        self._database.write(lambda connection: connection.execute(sql, row))
        return made

    def step(self, run: str, number: int, kind: str, data: Any, evidence: Iterable[Mapping[str, Any]] = ()) -> None:
        """Keeps a finished step of a run, in place of one with its number. data: plain data.

        evidence: what is new with it, {"id", "video" (an id of this library or None), "start", "end", "kind", ...}.
        """
        values, rows = (run, int(number), kind, _json(data)), [_evidence(run, item) for item in evidence]

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO step (run, number, kind, data) VALUES (?, ?, ?, ?)", values)
            connection.executemany(
                "INSERT OR REPLACE INTO evidence (run, name, video, start, finish, kind, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.execute("UPDATE run SET used = ? WHERE id = ?", (time.time(), run))

        self._database.write(work)

    def end_run(self, run: str, state: str = "done", **data: Any) -> None:
        """Ends a run as "done" or "failed"; data: added to that of its beginning."""
        if state not in STATES:
            raise UsageError(f"the state of a run is {shown(state)}; it must be one of {', '.join(STATES)}")
        sql = "UPDATE run SET state = ?, used = ?, data = json_patch(data, ?) WHERE id = ?"
        values = (state, time.time(), _json(data), run)
        self._database.write(lambda connection: connection.execute(sql, values))

    def run(self, id: str | None = None) -> Run:
        """The Run of an id or its beginning, with its steps; None: the one used last. Raises UsageError where it is not clear."""
        if id is None:
            found = self._database.rows(f"SELECT {RUN} FROM run ORDER BY used DESC, added DESC LIMIT 1", (), _run)
        else:
            sql = f"SELECT {RUN} FROM run WHERE substr(id, 1, ?) = ? LIMIT 2"
            found = self._database.rows(sql, (len(id), id), _run)
        if len(found) != 1 or id == "":
            what = "there is no run" if not found else "several runs begin with"
            raise UsageError(f"{what}{'' if id is None else f' {shown(id)}'} in the library")
        sql = "SELECT number, kind, data FROM step WHERE run = ? ORDER BY number"
        return replace(found[0], steps=tuple(self._database.rows(sql, (found[0].id,), _step)))

    def runs(self, most: int = 100, state: str | None = None) -> list[Run]:
        """The runs, the one used last first, without their steps. state: only those in that state."""
        condition, values = ("", ()) if state is None else ("WHERE state = ? ", (state,))
        sql = f"SELECT {RUN} FROM run {condition}ORDER BY used DESC, added DESC LIMIT ?"
        return self._database.rows(sql, (*values, most), _run)

    def evidence(self, run: str) -> list[dict[str, Any]]:
        """The evidence of a run as it was given to `step`, by id."""
        sql = "SELECT name, video, start, finish, kind, data FROM evidence WHERE run = ?"
        return sorted(self._database.rows(sql, (run,), _item), key=lambda item: (len(item["id"]), item["id"]))


VIDEO = "id, digest, path, duration, meta"
RUN = "id, question, state, data, used"


def digest_of(path: str | os.PathLike[str]) -> bytes:
    """The digest of a file's content. Raises MediaError, Stopped."""
    try:
        return files.content_digest(path)
    except (OSError, ValueError) as error:
        raise MediaError(f"video {os.fsdecode(path)} cannot be read: {reason(error)}") from error


def _video(id: int, digest: bytes, path: bytes, duration: float, meta: str) -> Video:
    return Video(id, memoryview(digest).tobytes(), os.fsdecode(path), float(duration), dict(json.loads(meta)))


def _segment(id: int, start: float, end: float, maker: str | None, caption: str) -> Segment:
    return Segment(id, float(start), float(end), maker, caption)


def _run(id: str, question: str, state: str, data: str, used: float) -> Run:
    return Run(id, question, state, dict(json.loads(data)), (), float(used))


def _step(number: int, kind: str, data: str) -> Step:
    return Step(int(number), kind, json.loads(data))


def _item(name: str, video: int | None, start: float, end: float, kind: str, data: str) -> dict[str, Any]:
    return {"id": name, "video": video, "start": float(start), "end": float(end), "kind": kind, **json.loads(data)}


def _evidence(run: str, item: Mapping[str, Any]) -> tuple[Any, ...]:
    rest = {name: value for name, value in item.items() if name not in ("id", "video", "start", "end", "kind")}
    return run, item["id"], item.get("video"), float(item["start"]), float(item["end"]), item["kind"], _json(rest)


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"the kind of a text is {shown(kind)}; it must be one of {', '.join(KINDS)}")
    return kind


def _text(text: str) -> str:
    """A text as it is kept: one line, composed characters, not endless."""
    return " ".join(clean(text[: 4 * LONGEST]).split())[:LONGEST]


def _json(data: Any) -> str:
    """JSON of plain data: tuples are lists, names of files that are no text are escaped. Raises UsageError."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        return json.dumps(data, allow_nan=False)
    raise UsageError(f"{shown(data)} is no plain data")
