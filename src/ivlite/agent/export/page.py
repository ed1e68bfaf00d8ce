"""An answer as one HTML file that needs nothing else: evidence with pictures, claims, what was looked at, the steps.

Times seek the video where it lies beside the report. Every text is data that somebody else may have written: `markup`
escapes it, and the page allows no script but its own and loads nothing but that video.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ivlite import media, output
from ivlite.agent.answer import Answer, Call, Claim, Evidence, Look, Remark, Result, Said, Thought, Video
from ivlite.agent.export.figures import (
    LONGEST,
    arguments,
    figure,
    place,
    rest,
    seen,
    short,
    shortened,
    span_text,
    union,
    widest,
)  # fmt: skip
from ivlite.agent.export.markup import Html, join, tag
from ivlite.agent.export.page_style import SCRIPT, STYLE
from ivlite.agent.export.text import CITED, STATES, cited, line
from ivlite.errors import MediaError
from ivlite.files import expanded
from ivlite.media.thumbnails import Thumbnail, thumbnails
from ivlite.numbers import clock

MISSED = "shorter events may be missed"
Pictures = Mapping[str, Sequence[Thumbnail]]  # by the id of evidence
SIDE = 320  # pixels of a thumbnail's longest side
NAMED, OTHERS = 3, 1  # thumbnails of evidence that the answer names, and of other evidence
MOST = 240  # thumbnails of a page
FPS = 25  # of frames without times
ENDS = {
    "budget": "the budget is used up",
    "stalled": "nothing new was found",
    "repairs": "the model's calls made no sense",
}
CONFIDENCE = {"low": "low confidence", "mid": "medium confidence", "high": "high confidence"}


def write(path: str | os.PathLike[str], answer: Answer, question: str) -> list[str]:
    """Writes the report of an answer; returns sentences about what it lacks. Raises DiskError, UsageError, Stopped.

    A video in the folder of the report, or in a folder of that one, is played by it.
    """
    pictures, notes = pictures_of(answer)
    folder = os.path.dirname(expanded(path)) or "."
    players = {v.handle: src for v in answer.videos if (src := address(v.path, folder))}
    output.write(path, page(answer, question, pictures, players, notes).encode())
    return notes


def address(path: str, folder: str) -> str | None:
    """The relative URL of a video in a folder or below it, also through links; None for one elsewhere."""
    for whole in (os.path.abspath, os.path.realpath):
        inside = Path(whole(path))
        if os.path.isfile(path) and inside.is_relative_to(whole(folder)):
            return "./" + quote(os.fsencode(inside.relative_to(whole(folder)).as_posix()))
    return None


def pictures_of(answer: Answer) -> tuple[dict[str, list[Thumbnail]], list[str]]:
    """The thumbnails of frames that were shown, by id of evidence, and sentences about videos that cannot be read."""
    named = cited(answer)
    ranked = sorted(answer.evidence, key=lambda e: e.id not in named)  # the named first
    wanted, left = {}, MOST
    for e in ranked:
        some = spread(e.frames, min(left, NAMED if e.id in named else OTHERS))
        wanted[e.id], left = some, left - len(some)
    found: dict[str, list[Thumbnail]] = {}
    notes = []
    for video in answer.videos:
        mine = [e for e in answer.evidence if e.video == video.handle and wanted[e.id]]
        try:
            made = (
                thumbnails(media.probe(video.path, fps=FPS), [t for e in mine for t in wanted[e.id]], SIDE)
                if mine
                else []
            )
        except MediaError as error:
            notes.append(f"no pictures of {video.handle}: {error}")
            continue
        for e in mine:
            count = len(wanted[e.id])
            found[e.id], made = made[:count], made[count:]
    return found, notes


def spread(times: Sequence[float], count: int) -> list[float]:
    """At most `count` of some times, evenly chosen; the middle one for one."""
    if len(times) <= count:
        return list(times)
    if count <= 1:
        return [times[len(times) // 2]] * count
    return [times[round(i * (len(times) - 1) / (count - 1))] for i in range(count)]


# ------------------------------------------------------------------------------------------------ the page


def page(
    answer: Answer, question: str, pictures: Pictures, players: Mapping[str, str], notes: Sequence[str] = ()
) -> str:
    """The text of the report. players: relative URLs of the videos that lie beside it, by handle. notes: for the reader."""
    view = View(answer, pictures, players)
    body = tag(
        "div",
        view.header(question),
        tag("div", view.players_of(), tag("div", view.answer_of(), view.claims(), view.evidence(), view.looked(),
            view.steps(), view.usage(), view.footer(notes), class_="body"), class_="main"),
        class_="page with-video" if players else "page",
    )  # fmt: skip
    return (
        f"<!doctype html>\n{tag('html', head(question), tag('body', body, tag('script', Html(SCRIPT))), lang='en')}\n"
    )


def head(question: str) -> Html:
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    rules = (
        "default-src 'none'; img-src data:; media-src 'self' file:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=rules),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", line(question, 120) or "Report"),
        tag("style", Html(STYLE)),
    )


class View:
    """The parts of the page of one answer."""

    def __init__(self, answer: Answer, pictures: Pictures, players: Mapping[str, str]) -> None:
        self.answer, self.pictures, self.players = answer, pictures, players
        self.known = {e.id: e for e in answer.evidence}
        self.named = cited(answer)
        self.several = len(answer.videos) > 1

    # -------------------------------------------------------------------------------------------- small parts

    def moment(self, video: str, start: float, end: float | None = None, *inside: Any) -> Html:
        """A time or a span that seeks the player where there is one. inside: what to show instead of the times."""
        shown = inside or [span_text(start, end)]
        precise = f"{clock(start)} – {clock(end)}" if end is not None and end > start else clock(start)
        if video not in self.players:
            return tag("span", *shown, class_="time", title=precise)
        over = end if end is not None and end > start else None
        fragment = f"#t={start:.3f}" + (f",{over:.3f}" if over is not None else "")
        return tag(
            "a", *shown, class_="time", href=self.players[video] + fragment, data_video=video,
            data_start=f"{start:.3f}", data_end=over and f"{over:.3f}", title=precise,
            aria_label=f"Play {span_text(start, end)}" if inside else None,
        )  # fmt: skip

    def where(self, e: Evidence) -> list[Any]:
        """The times of evidence, and its video where there are several."""
        return [self.moment(e.video, e.start, e.end), f" in {e.video}" if self.several else None]

    def reference(self, name: str) -> Any:
        """The id of evidence as a link to it, followed by its times."""
        e = self.known.get(name)
        if e is None:
            return f"[{name}]"
        return [tag("a", name, class_="id", href=f"#{name}"), " ", self.where(e)]

    def prose(self, text: str) -> list[Any]:
        """A text whose marks of evidence are links."""
        parts: list[Any] = []
        at = 0
        for found in CITED.finditer(text):
            names = [name.strip() for name in found[1].split(",")]
            parts += [text[at : found.start()], join(", ", [self.reference(name) for name in names])]
            at = found.end()
        return [*parts, text[at:]]

    # -------------------------------------------------------------------------------------------- sections

    def header(self, question: str) -> Html:
        videos = [tag("bdi", v.title or os.path.basename(v.path)) for v in self.answer.videos]
        lengths = [f" ({short(v.duration)})" for v in self.answer.videos]
        names = [[f"{v.handle}: " if self.several else None, name, length]
                 for v, name, length in zip(self.answer.videos, videos, lengths, strict=True)]  # fmt: skip
        return tag(
            "header",
            tag("h1", question or "Report", dir="auto"),
            tag(
                "p",
                join(" · ", [CONFIDENCE.get(self.answer.confidence, self.answer.confidence), *names]),
                class_="soft small",
            ),
        )

    def players_of(self) -> Html | None:
        made = [self.player(video, src) for video in self.answer.videos if (src := self.players.get(video.handle))]
        return tag("div", tag("div", *made, class_="stick"), class_="player") if made else None

    def player(self, video: Video, src: str) -> Html:
        title = video.title or video.handle
        return tag(
            "figure",
            tag("video", src=src, data_video=video.handle, controls=True, preload="metadata", playsinline=True, aria_label=title),
            tag("p", "This browser cannot play ", tag("bdi", title), ": open it in a player.", class_="soft small",
                data_failed=True, hidden=True),
            tag("figcaption", video.handle, ": ", tag("bdi", title), class_="soft small") if self.several else None,
        )  # fmt: skip

    def answer_of(self) -> Html:
        text = self.prose(self.answer.text) if self.answer.text else "There is no answer."
        return tag("section", tag("div", text, class_="answer", dir="auto"), aria_label="Answer")

    def claims(self) -> Html | None:
        if not self.answer.claims:
            return None
        items = [tag("li", self.claim(claim)) for claim in self.answer.claims]
        return tag("section", tag("h2", "Claims"), tag("ol", *items, class_="claims"))

    def claim(self, claim: Claim) -> list[Html]:
        kind = {True: "state good", False: "state bad", None: "state soft"}[claim.confirmed]
        chance = "" if claim.probability is None else f" {claim.probability:.0%}"
        rests = join(", ", [self.reference(name) for name in claim.evidence])
        return [
            tag("div", self.prose(claim.text), dir="auto"),
            tag("p", tag("span", STATES[claim.confirmed] + chance, class_=kind), " ", rests, class_="small"),
        ]

    def evidence(self) -> Html | None:
        named = [e for e in self.answer.evidence if e.id in self.named]
        others = [e for e in self.answer.evidence if e.id not in self.named]
        if not self.answer.evidence:
            return None
        more = None
        if others:
            more = tag(
                "details", tag("summary", f"{len(others)} more that the answer does not name"), self.cards(others)
            )
        return tag("section", tag("h2", "Evidence"), self.cards(named) if named else None, more)

    def cards(self, some: Sequence[Evidence]) -> Html:
        return tag("ul", *map(self.card, some), class_="cards")

    def card(self, e: Evidence) -> Html:
        frames = [self.moment(e.video, t.time, None, picture(t)) for t in self.pictures.get(e.id, ())]
        about = {"frames": f"{len(e.frames)} frame{'s' * (len(e.frames) != 1)}"}.get(e.kind, e.kind)
        score = "" if e.score is None else f" · score {e.score:.2f}"
        return tag(
            "li",
            tag("div", *frames, class_="frames") if frames else None,
            tag("div", tag("span", e.id, class_="id"), " ", self.where(e),
                tag("p", e.text[:LONGEST], dir="auto") if e.text else None,
                tag("p", about + score, class_="soft small"), class_="text"),
            class_="card", id=e.id,
        )  # fmt: skip

    def looked(self) -> Html:
        parts = [self.strip(video) for video in self.answer.videos]
        open_ = [tag("strong", "Not found out: "), tag("bdi", self.prose(self.answer.missing))]
        missing = tag("p", *open_) if self.answer.missing else None
        key = tag("p", tag("span", "looked at", class_="key", style="--c:var(--seen)"),
                  tag("span", "evidence of the answer", class_="key", style="--c:var(--mark)"), class_="soft small")  # fmt: skip
        return tag("section", tag("h2", "What was looked at"), missing, *parts, key if parts else None, self.looks())

    def strip(self, video: Video) -> list[Any]:
        """A line of time: what was looked at, what the answer names, and in words what was not looked at."""
        length = max(video.duration, 1e-3)
        looks = [look for look in self.answer.looked_at if look.video == video.handle]
        named = [e for e in self.answer.evidence if e.video == video.handle and e.id in self.named]
        bands = [
            tag("i", style=f"left:{place(s, length)};width:{place(e - s, length)}") for s, e in union(looks, length)
        ]
        marks = [
            tag("a", href=f"#{e.id}", style=f"left:{place(e.start, length)};width:{place(e.end - e.start, length)}",
                title=f"{e.id} {span_text(e.start, e.end)}", aria_label=f"{e.id} {span_text(e.start, e.end)}")
            for e in named if e.end - e.start < 0.9 * length
        ]  # fmt: skip
        return [
            tag("p", tag("bdi", video.title or video.handle), class_="small") if self.several else None,
            tag("div", *bands, *marks, class_="strip"),
            tag("div", tag("span", short(0)), tag("span", short(video.duration)), class_="ends soft small time"),
            tag("p", self.unseen(video, looks), class_="small"),
        ]  # fmt: skip

    def unseen(self, video: Video, looks: Sequence[Look]) -> list[Any]:
        times = seen(self.answer, video.handle)
        if not times:
            return ["No frame of this video was looked at."]
        apart = f"Frames that were looked at lie up to {widest(times, video.duration):.1f} seconds apart: {MISSED}."
        if MISSED in self.answer.missing:  # the agent has said it, of frames that the page does not know
            apart = ""
        gaps = rest(union(looks, video.duration), video.duration)
        if not gaps:
            return ["All of it was looked at. ", apart]
        named: list[Any] = [self.moment(video.handle, s, e) for s, e in gaps[:12]]
        more = f" and {len(gaps) - 12} more parts" if len(gaps) > 12 else ""
        return ["Not looked at: ", join(", ", named), more, ". ", apart]

    def looks(self) -> Html | None:
        if not self.answer.looked_at:
            return None
        head = tag("tr", tag("th", "Video") if self.several else None, tag("th", "Part"), tag("th", "Frames", class_="n"),
                   tag("th", "One every", class_="n"))  # fmt: skip
        rows = [
            tag("tr", tag("td", look.video) if self.several else None, tag("td", self.moment(look.video, look.start, look.end)),
                tag("td", look.frames, class_="n"), tag("td", f"{look.every:.2f} s" if look.every > 0 else "", class_="n"))
            for look in self.answer.looked_at
        ]  # fmt: skip
        return tag("details", tag("summary", f"{len(rows)} look{'s' * (len(rows) != 1)}"), tag("table", head, *rows))

    def steps(self) -> Html | None:
        shown = [tag("li", tag("span", name), value) for name, value in map(self.step, self.answer.steps) if name]
        if not shown:
            return None
        return tag("section", tag("h2", "Steps"),
                   tag("details", tag("summary", f"{len(shown)} steps"), tag("ol", *shown, class_="steps")))  # fmt: skip

    def step(self, event: Any) -> tuple[str, Any]:
        """(what happened, and its text) of an event; ("", None) for one that the page shows elsewhere."""
        if isinstance(event, Thought):
            return "thought", tag("div", shortened(event.text), dir="auto")
        if isinstance(event, Call):
            return f"call {event.number}", tag("pre", shortened(f"{event.name}({arguments(event.arguments)})"))
        if isinstance(event, Result):
            return f"result {event.number}", tag("pre", shortened(event.text))
        if isinstance(event, Remark):
            return "remark", tag("div", shortened(event.text), dir="auto")
        if isinstance(event, Said):
            return "claim", tag("div", STATES[event.claim.confirmed], ": ", shortened(event.claim.text), dir="auto")
        return "", None

    def usage(self) -> Html | None:
        if not self.answer.usage:
            return None
        rows = [(tag("dt", str(k).replace("_", " ")), tag("dd", figure(v))) for k, v in self.answer.usage.items()]
        return tag("section", tag("h2", "Usage"), tag("dl", rows))

    def footer(self, notes: Sequence[str]) -> Html:
        ended = self.answer.finish_reason
        lines = [*notes] if ended == "finish" else [*notes, f"The answer was cut short: {ENDS.get(ended, ended)}."]
        return tag("footer", *[tag("p", line) for line in lines],
                   tag("p", "Made by ivlite on this machine. The model can be wrong: look at the evidence."), class_="soft small")  # fmt: skip


def picture(thumb: Thumbnail) -> Html:
    data = base64.b64encode(thumb.jpeg).decode()
    return tag("img", src=f"data:image/jpeg;base64,{data}", alt=f"Frame at {clock(thumb.time)}",
               width=thumb.width, height=thumb.height, decoding="async")  # fmt: skip
