"""`ivlite find`: where something is said or seen in videos, from the library, and checked by a model where one is given."""

import argparse
import contextlib
import os
from dataclasses import dataclass, replace

from ivlite.cli import arguments, json_line, say, videos
from ivlite.cli.progress import display
from ivlite.errors import MediaError, Stopped, UsageError
from ivlite.numbers import clock

LIMIT = 20  # spans that are printed
CANDIDATES = 3  # times as many texts are looked at, where a model checks them
AROUND, SHORTEST = 1.0, 4.0  # seconds that are looked at on each side of a text, and at least
BUDGET = 2048  # vision tokens of one look
LEAST = 0.5  # p(yes) of what is found
NOTHING = 1  # exit code, as grep's
LONGEST = 160  # characters of a text on a line

EPILOG = """\
examples:
  ivlite find "red truck"                                    # in all that is indexed
  ivlite find "red truck" *.mp4 --sheet trucks.jpg
  ivlite find model.gguf "a red truck crosses the bridge" street/ --max-wait 5m
  ivlite find '"thank you"' talk.mp4 --kind subtitle --json | jq .found

Searches subtitles, speech, descriptions and notes: all words first, then parts of words, then some of the words. Several words in
double quotes are one. Videos that are not indexed are searched by their subtitles; `ivlite index` adds the rest.

With a model, what is found in texts is looked at, and so are all segments of videos that are not described; the score is then the
probability that the frames show it. Ctrl-C prints what was found by then.

Exit codes: 0 something was found, 1 nothing, 4 if a video could not be used.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "find",
        help="find where something is said or seen in videos",
        usage="%(prog)s [MODEL] QUERY [VIDEO ...] [options]",
        description="Finds where something is said or seen in videos: spans of time, best first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", metavar="MODEL QUERY VIDEO", nargs="+",
                        help="a GGUF file to check by sight, what to find, and videos or folders (default: all that is indexed)")  # fmt: skip
    what = parser.add_argument_group("what is found")
    add = what.add_argument
    add(
        "-n",
        "--limit",
        type=arguments.whole(1, 10_000),
        default=LIMIT,
        metavar="N",
        help=f"most spans (default: {LIMIT})",
    )
    add("--kind", action="append", choices=("subtitle", "speech", "caption", "note"),
        help="only texts of this kind; may be given several times")  # fmt: skip
    add("--start", type=arguments.moment, metavar="TIME", help="only after this time, seconds or HH:MM:SS")
    add("--end", type=arguments.moment, metavar="TIME", help="only before this time")
    videos.add_library(what)
    sight = parser.add_argument_group("by sight, with a MODEL")
    sight.add_argument("--least", type=arguments.number(0, 1), metavar="P",
                       help=f"least probability of what is printed (default: {LEAST})")  # fmt: skip
    sight.add_argument(
        "--max-wait", type=arguments.duration, metavar="TIME", help="look no longer than this, as 90, 5m or 1:30:00"
    )
    arguments.add_shared(sight, "--budget", budget=f"most vision tokens of one look (default: {BUDGET})")
    arguments.add_machine(parser.add_argument_group("machine"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--sheet", type=arguments.path, metavar="FILE", help="write a contact sheet of what is found, a JPEG file"
    )
    arguments.add_shared(output, "--json", "--quiet", "--verbose")


@dataclass(frozen=True)
class Span:
    """A part of a video that matches. kind: of the text, or "frames". score: of the text, or p(yes) where a model looked."""

    video: int
    path: str
    start: float
    end: float
    score: float
    kind: str
    text: str = ""
    looked: bool = False


def run(args):
    model, words = videos.with_model(args.words)
    if model and words and not os.path.exists(model) and os.path.exists(words[0]):  # `find demo talk.mp4`
        model, words = None, args.words
    if not words or not words[0].strip():
        raise UsageError("say what to find: ivlite find QUERY [VIDEO ...]")
    if args.end is not None and args.end <= (args.start or 0):
        raise UsageError(f"--end ({args.end:g} s) must come after --start ({args.start or 0:g} s)")
    if model is None:
        videos.check_unused(
            args,
            ("least", "max_wait", "budget"),
            "sight, and there is no MODEL: name one before QUERY, or leave the option out",
        )
    query, paths = words[0], videos.expanded(map(arguments.path, words[1:]))
    if args.sheet:
        from ivlite.output import check_outputs

        check_outputs([args.sheet], [model, args.library, *paths])
    with videos.open_library(args, inputs=[model, *paths]) as library:
        return Search(args, library, model, query).run(paths)


class Search:
    """One search. ids: of the videos that are searched, None for all. code: the exit code of faults so far."""

    def __init__(self, args, library, model, query):
        self.args, self.library, self.model, self.query = args, library, model, query
        self.ids, self.code, self.complete = None, 0, True
        self._same = {}  # id of a video -> whether its file has the content that the library knows

    def run(self, paths):
        """Searches, prints what is found, and returns the exit code."""
        stopped = None
        if paths:
            self.ids = self.known(paths)
        found = self.texts()
        if self.model is not None:
            found, stopped = self.looked(found)
        found = found[: self.args.limit]
        self.show(found)
        if stopped is not None and stopped.reason != "deadline":
            raise stopped
        if self.args.sheet and found:
            self.sheet(found)
        if not found and not self.code:
            self.nothing()
        return self.code or (0 if found else NOTHING)

    def known(self, paths):
        """The ids of videos; the subtitles of those that are new are read."""
        from ivlite.library import indexing

        ids = []
        for path in paths:
            try:
                done = indexing.texts(self.library, path)
            except MediaError as error:
                self.failed(error)
                continue
            ids.append(done.id)
            for sentence in done.notes:
                say("warning", sentence)
        return ids

    def texts(self):
        """The Spans of texts that match, the best first; the same words of one moment once."""
        most = self.args.limit * (CANDIDATES if self.model else 1)
        hits = self.library.search(
            self.query, self.ids, self.args.start, self.args.end, self.args.kind, min(10_000, 2 * most)
        )
        paths, spans = {}, {}
        for hit in hits:
            if hit.video not in paths:
                paths[hit.video] = self.library.video(hit.video).path
            if self.changed(hit.video, paths[hit.video]):
                continue
            key = hit.video, round(hit.start), hit.text.casefold()
            spans.setdefault(key, Span(hit.video, paths[hit.video], hit.start, hit.end, hit.score, hit.kind, hit.text))
        return list(spans.values())[:most]

    def changed(self, id, path):
        """Whether another file is in the place of a video now, which is said once; one that is gone is still found."""
        if id in self._same or not os.path.exists(path):
            return not self._same.get(id, True)
        if not self.same(id, path) and not self.args.quiet:
            say("warning", f"video {path} has changed since it was remembered: `ivlite index` reads it again")
        return not self._same[id]

    # -------------------------------------------------------------------------------------------- by sight

    def looked(self, found):
        """(Spans whose frames show it, the likeliest first; the Stopped that ended the looks or None)."""
        from ivlite.stop import Stop, current, using, within

        stop, todo, seen, stopped = Stop(), [], [], None
        if self.args.max_wait is not None:
            stop.after(self.args.max_wait)
        progress = display(self.args.quiet or self.args.json, self.args.verbose)
        try:
            with using(within(stop, current())), Eyes(self.model, self.args) as eyes:
                todo = [*merged(map(widened, self.there(found))), *self.undescribed()]
                for n, span in enumerate(todo):
                    if progress:
                        progress("look", n, len(todo))
                    if (odds := self.odds(eyes, span)) is not None:
                        seen.append(replace(span, score=odds, looked=True))
        except Stopped as error:
            stopped, self.complete = error, False
            say("progress", f"{len(seen):,} of {len(todo):,} parts were looked at")
        finally:
            if progress:
                progress.clear()
        least = LEAST if self.args.least is None else self.args.least
        good = sorted((span for span in seen if span.score >= least), key=lambda span: -span.score)
        if seen and not good and not self.args.quiet:
            best = max(span.score for span in seen)
            say(
                "progress",
                f"{len(seen):,} parts were looked at, and none shows it (the likeliest: {best:.2f}, see --least)",
            )
        return good, stopped

    def odds(self, eyes, span):
        """p(yes) of a Span; None, and an error said, where its video cannot be decoded."""
        try:
            return eyes.odds(span, self.query)
        except MediaError as error:
            self.failed(error)
            return None

    def there(self, spans):
        """The Spans whose videos are still there with the content that the library knows."""
        return (span for span in spans if self.same(span.video, span.path))

    def same(self, id, path):
        """Whether a video is still there with the content that the library knows."""
        if id not in self._same:
            self._same[id] = False
            with contextlib.suppress(MediaError):
                video = self.library.find(path)
                self._same[id] = video is not None and video.id == id
        return self._same[id]

    def failed(self, error):
        """Says what one video has; the others are searched."""
        say("error", error)
        self.code = error.exit_code

    def undescribed(self):
        """The segments of videos that no model has described, as Spans: within --start and --end, spread over each video."""
        from ivlite.library import indexing

        if self.args.kind is not None:
            return
        for id in self.searched():
            video, segments = self.library.video(id), self.library.segments(id)
            if any(segment.maker is not None for segment in segments) or not self.same(id, video.path):
                continue
            try:
                segments = segments or self.cut(id, video.path)
            except MediaError as error:
                self.failed(error)
                continue
            for segment in indexing.spread(segments):
                if segment.end > (self.args.start or 0) and segment.start < (self.args.end or float("inf")):
                    yield Span(id, video.path, segment.start, segment.end, 0.0, "frames")

    def cut(self, id, path):
        """The segments of a video that had none."""
        from ivlite import media
        from ivlite.library import indexing
        from ivlite.media.scenes import scenes

        return self.library.add_segments(id, scenes(media.probe(path, fps=indexing.FPS)).spans)

    def searched(self):
        """The ids of the videos that are searched."""
        return self.ids if self.ids is not None else [video.id for video in self.library.current()]

    # -------------------------------------------------------------------------------------------- output

    def show(self, found):
        if self.args.json:
            rows = [
                {"path": s.path, "start": round(s.start, 3), "end": round(s.end, 3), "score": round(s.score, 4), "kind": s.kind,
                 "text": s.text, "looked": s.looked}
                for s in found
            ]  # fmt: skip
            print(json_line({"query": self.query, "complete": self.complete, "found": rows}), flush=True)
            return
        for span in found:
            text = span.text if len(span.text) <= LONGEST else f"{span.text[: LONGEST - 4]} ..."
            words = f"{span.kind}: {text}" if text else span.kind
            print(
                videos.one_line(
                    f"{shorter(span.path)}  {clock(span.start)} - {clock(span.end)}  {span.score:.2f}  {words}"
                ),
                flush=True,
            )

    def sheet(self, found):
        """Writes the contact sheet: the middle of each span, in their order."""
        from ivlite import output
        from ivlite.media.thumbnails import MOST, Item, contact_sheet, thumbnails

        items = []
        for span in found[:MOST]:
            try:
                (picture,) = thumbnails(span.path, [(span.start + span.end) / 2])
            except MediaError as error:
                say("warning", error)
                continue
            items.append(Item(picture.jpeg, span.start, span.score, os.path.basename(span.path)))
        if items:
            output.write(self.args.sheet, contact_sheet(items))

    def nothing(self):
        """Says that nothing was found, and what could be done."""
        if self.args.quiet:
            return
        ids = self.searched()
        bare = sum(not self.library.count(id, "caption") for id in ids)
        more = f"; {bare:,} of {len(ids):,} videos are not described, see `ivlite index`" if bare else ""
        say("progress", "nothing is indexed, see `ivlite index`" if not ids else f"nothing was found{more}")


class Eyes(videos.Loaded):
    """The model of the command line, asked whether frames show something."""

    def odds(self, span, query):
        """p(yes) of a Span."""
        from ivlite.agent import say as words
        from ivlite.agent.apart import ENDS, odds

        model = self()
        content = [
            {"type": "video", "video": span.path, "start": span.start, "end": span.end},
            {"type": "text", "text": words.SHOWN.format(query=query)},
        ]
        with model.session() as session:
            stream = session.stream(
                [{"role": "user", "content": content}],
                budget=self.args.budget or BUDGET,
                max_new_tokens=1,
                temperature=0,
            )
            with stream:
                for _ in stream:
                    pass
            if stream.reply.finish_reason not in ENDS:
                raise Stopped.because(stream.reply.finish_reason)
            return odds(session, stream, model.tokenizer)


def widened(span):
    """A Span with some time around its text: what is said is rarely seen at the very moment."""
    more = max(AROUND, (SHORTEST - (span.end - span.start)) / 2)
    return span if span.kind == "caption" else replace(span, start=max(0.0, span.start - more), end=span.end + more)


def merged(spans):
    """Spans in their order; one that overlaps an earlier one of its video by half is left out."""
    out = []
    for span in spans:
        if not any(
            s.video == span.video and min(s.end, span.end) - max(s.start, span.start) > (span.end - span.start) / 2
            for s in out
        ):
            out.append(span)
    return out


def shorter(path):
    """A path from the current folder where that is shorter."""
    try:
        near = os.path.relpath(path)
    except (OSError, ValueError):
        return path
    return near if len(near) < len(path) and not near.startswith("../..") else path
