"""What an agent keeps in the library, and finds there: texts of its videos, its notes, and the steps of its runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ivlite.agent.case import Line
from ivlite.agent.film import Film
from ivlite.agent.record import FORM, Record, Step
from ivlite.errors import UsageError
from ivlite.library import Library, Run, digest_of, indexing

KINDS = ("subtitle", "speech", "caption", "ocr")  # texts that are there before a run
STATES = {"question": "running", "answer": "done"}  # of a run after such a step


class Memory:
    """The part of a library that is about some videos.

    remark(sentence): told of subtitles that are bad, and of videos that have changed. Raises MediaError, Stopped.
    """

    def __init__(self, library: Library, films: Sequence[Film], remark: Callable[[str], object]) -> None:
        self.library, self.remark, self.run = library, remark, ""
        self.ids: dict[str, int] = {}
        for film in films:
            path = film.file
            if path is None:
                continue
            known = indexing.texts(library, path, film.probe)
            self.ids[film.handle] = known.id
            for sentence in known.notes:
                remark(sentence)

    # -------------------------------------------------------------------------------------------- texts

    def count(self, film: Film) -> int:
        """The number of lines of a video, notes left out."""
        id = self.ids.get(film.handle)
        return 0 if id is None else len(self.library.texts(id, KINDS))

    def search(self, query: str, film: Film, start: float | None, end: float | None, k: int) -> list[Line]:
        """The k lines that match best, best first."""
        id = self.ids.get(film.handle)
        if id is None:
            return []
        hits = self.library.search(query, [id], start, end, k=k)
        return [Line(hit.start, hit.end, hit.text, hit.kind, hit.score) for hit in hits]

    def note(self, film: Film, start: float, end: float, text: str) -> None:
        """Keeps a note."""
        if (id := self.ids.get(film.handle)) is not None:
            with suppress(UsageError):  # the library was damaged, and begins anew without the video
                self.library.note(id, text, start=start, end=end, run=self.run)

    # -------------------------------------------------------------------------------------------- runs

    def begin(self, question: str, facts: Mapping[str, Any]) -> Record:
        """The Record of a new run. facts: what a later process needs to go on."""
        self.run = self.library.begin_run(question, form=FORM, **facts)
        return Record((), self._write)

    def resume(self, run: Run) -> Record:
        """The Record of a run that goes on."""
        self.run = run.id
        if run.steps and run.steps[-1].kind == "answer":
            self.library.end_run(run.id, "done")
        return Record(steps_of(run), self._write)

    def _write(self, number: int, kind: str, data: dict[str, Any]) -> None:
        new = [{**item, "video": self.ids.get(item["video"])} for item in data.get("evidence", ())]
        self.library.step(self.run, number + 1, kind, data, new)
        if kind in STATES:
            self.library.end_run(self.run, STATES[kind])


def steps_of(run: Run) -> list[Step]:
    """The steps of a run. Raises UsageError where they are of another version."""
    if run.data.get("form") != FORM:
        raise UsageError(f"run {run.id} was made by another version of ivlite: ask again")
    return [(step.kind, step.data) for step in run.steps]


def facts(model: Any, films: Sequence[Film], **settings: Any) -> dict[str, Any]:
    """What identifies a run: the model and the videos by their contents, and the settings."""
    videos = [{"path": film.video.path, "duration": film.duration, "digest": digest(film)} for film in films]
    return {"model": str(model.path or ""), "weights": weights(model), "videos": videos, "settings": settings}


def weights(model: Any) -> str:
    return str(model.network.source.digest)


def digest(film: Film) -> str:
    """The digest of a video file's content; "" for what is no file."""
    return digest_of(film.file).hex() if film.file else ""


def place(library: Library, video: Mapping[str, Any]) -> str:
    """The path of a video of a run: where it was, or where the library has seen the same content since."""
    path = str(video["path"])
    known = None if os.path.exists(path) or not video["digest"] else library.known(bytes.fromhex(video["digest"]))
    return known.path if known is not None and os.path.exists(known.path) else path


def checked(run: Run, model: Any, films: Sequence[Film]) -> None:
    """Raises UsageError where a run cannot go on with a model and videos, since they are not those that it began with."""
    if run.data.get("weights") != weights(model):
        raise UsageError(f"run {run.id} was made with another model, {run.data.get('model')}: resume it with that one")
    for film, known in zip(films, run.data["videos"], strict=True):
        if not known["digest"] or known["digest"] != digest(film):
            raise UsageError(f"{film.video.path} has changed since run {run.id} began: ask again")
