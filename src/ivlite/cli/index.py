"""`ivlite index`: reads subtitles and speech of videos, and what a model sees in them, into a library."""

import argparse
import contextlib
import os

from ivlite.cli import arguments, json_line, say, videos
from ivlite.cli.progress import Progress, display, seconds
from ivlite.errors import MediaError, Stopped, UsageError

BUDGET = 1024  # vision tokens of a segment
MADE = ("no_captions", "speech", "again", "budget", "max_wait")  # settings of what is remembered
LISTED = {
    "subtitles": "line of subtitles",
    "speech": "line of speech",
    "captioned": "segment described",
    "notes": "note",
}

EPILOG = """\
examples:
  ivlite index model.gguf lecture.mp4
  ivlite index model.gguf ~/Videos --max-wait 30m        # as much as fits in half an hour; run it again to go on
  ivlite index --no-captions talk.mp4 talks/             # subtitles only: seconds, no model
  ivlite index model.gguf talk.mp4 --speech ggml-base.bin
  ivlite index --list
  ivlite find "red truck"

Each video is cut into segments at its scene changes, of 30 seconds at most, and the model describes each. Subtitles are those
of the file's own tracks and of files beside it (talk.srt, talk.en.vtt). What is done is kept at once: after a Ctrl-C or a kill
the same command goes on, and does nothing anew. A video is known by its content, whatever its name is.

Exit codes: 4 if a video could not be used (the others are done), 6 if the library cannot be written.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "index",
        help="remember what is said and seen in videos, for find and agent",
        usage="%(prog)s [MODEL] VIDEO ... [options]",
        description="Remembers what is said and seen in videos, so that `ivlite find` and `ivlite agent` find it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", metavar="MODEL VIDEO", nargs="*", type=arguments.path,
                        help="a GGUF file made by `ivlite quantize`, then videos, and folders of videos")  # fmt: skip
    what = parser.add_argument_group("what is remembered")
    add = what.add_argument
    add("--no-captions", action="store_true", help="read texts only; needs no model")
    add("--speech", type=arguments.path, metavar="FILE",
        help="also write down what is said, with this model file of whisper.cpp (pip install 'ivlite[speech]')")  # fmt: skip
    add("--again", action="store_true", help="describe anew what is described already, as with another model")
    arguments.add_shared(what, "--budget", budget=f"most vision tokens of a segment (default: {BUDGET})")
    add("--max-wait", type=arguments.duration, metavar="TIME", help="end after this time, as 90, 30m or 1:30:00")
    videos.add_library(what)
    add("--list", action="store_true", help="list the videos of the library instead")
    add("--forget", action="store_true", help="remove the videos from the library instead")
    arguments.add_machine(parser.add_argument_group("machine"))
    arguments.add_shared(parser.add_argument_group("output"), "--json", "--quiet", "--verbose")


class Indexing(Progress):
    """The progress of one video: the stage it is in, and the time left of that."""

    name = ""

    def __call__(self, stage, done, total):
        if stage not in self.stages:
            self.restart()
        super().__call__(stage, done, total)

    def line(self, now):
        return videos.one_line(f"{self.name}: {super().line(now)}")


def captions(path, args, stack):
    """A Captioner of the model of the command line."""
    from ivlite.library.captions import Captions

    return Captions(os.path.basename(path), stack.enter_context(videos.Loaded(path, args)), args.budget or BUDGET)


def run(args):
    model, words = videos.with_model(args.words)
    check(args, model, words)
    if args.list:
        return listed(args)
    if args.forget:
        return forgotten(args, words)
    paths = videos.expanded(words)
    progress = display(args.quiet or args.json, args.verbose, kind=Indexing)
    with contextlib.ExitStack() as stack:
        library = stack.enter_context(videos.open_library(args, strict=True, inputs=[model, args.speech, *paths]))
        engine = stack.enter_context(whisper(args)) if args.speech else None
        captioner = None if args.no_captions else captions(model, args, stack)
        if progress:
            stack.callback(progress.clear)
        return Run(args, library, engine, captioner, progress).all(paths)


def check(args, model, words):
    """Raises UsageError for contradictory arguments."""
    if args.list and args.forget:
        raise UsageError("--list and --forget contradict each other")
    if args.list and (model or words):
        raise UsageError("--list takes no files")
    if args.forget and model:
        raise UsageError(f"--forget removes videos, and {model} is a model: leave it out")
    if args.list or args.forget:
        action = "--list only lists" if args.list else "--forget only removes"
        videos.check_unused(args, MADE, f"indexing, and {action}: leave the option out")
    if args.list:
        return
    if not words:
        raise UsageError("name the videos to index: ivlite index model.gguf VIDEO ...")
    if model is None and not args.no_captions and not args.forget:
        raise UsageError(
            "descriptions need a model: ivlite index model.gguf VIDEO ..., or --no-captions for texts only"
        )
    if args.no_captions and model:
        raise UsageError(f"--no-captions needs no model, and {model} is one: leave one of them out")
    if args.no_captions:
        used = ("no_store", "threads") if args.speech else ("no_store",)
        videos.check_unused(args, ("again", "budget"), "captions, and --no-captions makes none", used)


def whisper(args):
    from ivlite.media.speech import Whisper

    return Whisper(args.speech, args.threads or 0)


class Run:
    """One run of the command over several videos. facts: plain data of each."""

    def __init__(self, args, library, engine, captioner, progress):
        self.args, self.library, self.engine, self.captioner, self.progress = args, library, engine, captioner, progress
        self.facts, self.code, self.late = [], 0, False

    def all(self, paths):
        """Indexes videos one after the other; returns the exit code."""
        from ivlite.stop import Stop, current, using, within

        stop = Stop()
        if self.args.max_wait is not None:
            stop.after(self.args.max_wait)
        try:
            with using(within(stop, current())):
                for path in paths:
                    self.one(path)
        except Stopped as stopped:
            if stopped.reason != "deadline":
                say("progress", "what was done is kept: the same command goes on")
                raise
            self.late = True
        finally:
            if self.args.json:
                print(
                    json_line({"library": self.library.path, "complete": not self.late, "videos": self.facts}),
                    flush=True,
                )
        if self.late:
            say("progress", f"{seconds(self.args.max_wait)} are over: run the same command again to go on")
        return self.code

    def one(self, path):
        """Indexes one video, and says what came of it."""
        from ivlite import media
        from ivlite.library import indexing

        if self.progress:
            self.progress.restart()
            self.progress.name = os.path.basename(path)
        done, error = None, None
        try:
            probe = media.probe(path, fps=indexing.FPS)
            done = indexing.texts(self.library, path, probe, self.engine, self.progress)
            if self.captioner:
                for _ in indexing.captions(self.library, done, probe, self.captioner, self.args.again, self.progress):
                    pass
        except MediaError as fault:
            error, self.code = fault, MediaError.exit_code
        finally:
            self.said(path, done, error)

    def said(self, path, done, error):
        """Prints what came of a video."""
        if self.progress:
            self.progress.clear()
        if error is not None:
            say("error", error)
        for sentence in done.notes if done else ():
            say("warning", sentence)
        self.facts.append(facts(path, done, error))
        if done and not self.args.json and not self.args.quiet:
            print(videos.one_line(line(done)), flush=True)


def facts(path, done, error):
    """What came of a video as plain data."""
    data = {"path": path, "error": None if error is None else str(error)}
    if done is None:
        return data
    return data | {
        "duration": round(done.duration, 3), "subtitles": done.cues.get("subtitle", 0), "speech": done.cues.get("speech", 0),
        "segments": done.segments, "captioned": done.captioned, "new": done.new, "notes": done.notes,
    }  # fmt: skip


def line(done):
    """What is known of a video as text."""
    texts = [
        counted(count, f"line of {'subtitles' if kind == 'subtitle' else kind}") for kind, count in done.cues.items()
    ]
    if done.segments:
        part = "" if done.captioned == done.segments else f"{done.captioned:,} of "
        texts.append(f"{part}{counted(done.segments, 'segment')} described")
    known = "" if done.new or done.first else "already indexed: "
    return f"{os.path.basename(done.path)} ({seconds(done.duration)}): {known}{', '.join(texts) or 'no texts'}"


def counted(count, name):
    first, _, rest = name.partition(" ")
    return f"{count:,} {first}{'' if count == 1 else 's'}{f' {rest}' if rest else ''}"


def listed(args):
    """Prints the videos of the library."""
    with videos.open_library(args) as library:
        current = {video.id for video in library.current()}
        found = [entry(library, video, video.id in current) for video in library.videos()]
        path = library.path
    if args.json:
        print(json_line({"library": path, "videos": found}), flush=True)
        return 0
    for video in found:
        counts = ", ".join(counted(video[name], what) for name, what in LISTED.items() if video[name])
        state = "" if video["there"] else " (not there now)" if video["current"] else " (what it was before it changed)"
        where = f"{video['path']}{state}"
        print(videos.one_line(f"{where} ({seconds(video['duration'])}): {counts or 'no texts'}"), flush=True)
    if not found:
        print("nothing is indexed", flush=True)
    return 0


def entry(library, video, current):
    """A video of the library as plain data. current: whether its path has not shown another content since."""
    segments = library.segments(video.id)
    counts = {
        name: library.count(video.id, kind)
        for name, kind in (("subtitles", "subtitle"), ("speech", "speech"), ("notes", "note"))
    }
    done = sum(segment.maker is not None for segment in segments)
    there = current and os.path.exists(video.path)
    return {
        "path": video.path,
        "duration": video.duration,
        **counts,
        "segments": len(segments),
        "captioned": done,
        "there": there,
        "current": current,
    }


def forgotten(args, paths):
    """Removes videos from the library: by their content, and whatever was known of their paths."""
    with videos.open_library(args, strict=True) as library:
        for path in map(os.path.abspath, paths):
            ids = {video.id for video in library.videos() if video.path == path}
            if os.path.exists(path) and (same := library.find(path)) is not None:
                ids.add(same.id)
            if not ids:
                raise UsageError(f"video {path} is not in the library; `ivlite index --list` lists what is")
            for id in ids:
                library.forget(id)
            if not args.quiet and not args.json:
                print(videos.one_line(f"forgotten: {path}"), flush=True)
    if args.json:
        print(json_line({"forgotten": paths}), flush=True)
    return 0
