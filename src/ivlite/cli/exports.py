"""What a command that answers from evidence can write besides its answer: a report, clips, captions, chapters; pictures."""

import os
import sys

from ivlite.cli import arguments, say
from ivlite.errors import IvliteError, MediaError, Stopped, UsageError
from ivlite.files import expanded

# The options, and what they are for: "file" or "folder".
OPTIONS = (
    ("--report", "file", "F.html", "write a report that opens in a browser: the evidence with pictures, the claims, the steps"),
    ("--clips", "folder", "DIR", "cut a clip of each piece of evidence that the answer names"),
    ("--srt", "file", "FILE", "write the claims as captions, at the times of their evidence (SubRip)"),
    ("--vtt", "file", "FILE", "the same as WebVTT"),
    ("--chapters", "file", "FILE", "write the claims as chapters: a name in .txt for the list that video sites read, any other for ffmpeg"),
)  # fmt: skip
SHOWN = 8  # pictures in a terminal


def add(group):
    """Adds the options to a group of arguments."""
    for name, _, metavar, text in OPTIONS:
        group.add_argument(name, type=arguments.path, metavar=metavar, help=text)


def given(args):
    """{name of the option without dashes: (kind, path)} of those that are given."""
    found = {name[2:]: (kind, getattr(args, name[2:])) for name, kind, *_ in OPTIONS}
    return {name: (kind, path) for name, (kind, path) in found.items() if path is not None}


def check(args, videos, inputs=()):
    """Before minutes of work: whether the outputs can be written, and replace no video, no subtitles beside one, no input.

    videos: paths. inputs: other files that are read. Says which captions ivlite itself will read. Raises UsageError, DiskError.
    """
    from ivlite.media.subtitles import beside
    from ivlite.output import check_outputs

    subtitles = {file: video for video in videos for file in beside(video)}
    files = [(name, path) for name, (kind, path) in given(args).items() if kind == "file"]
    written = [place for name, path in files for place in places(name, path, len(videos))]
    check_outputs(written, [*videos, *subtitles, *inputs])
    for kind, path in given(args).values():
        if kind == "folder" and os.path.exists(expanded(path)) and not os.path.isdir(expanded(path)):
            raise UsageError(f"{path} is a file: name a folder for the clips")
    for place in () if args.quiet else written:
        if video := next((video for video in videos if is_beside(place, video)), None):
            say("warning", f"{place} is named like subtitles of {video}: later questions read it as what is said there")


def places(name, path, videos):
    """The files that an option may write about so many videos: captions and chapters have one for each."""
    if name == "report" or videos < 2:
        return [path]
    root, ending = os.path.splitext(path)
    return [f"{root}.v{n}{ending}" for n in range(1, videos + 1)]


def is_beside(path, video):
    """Whether a file of that name is one of the subtitles of a video."""
    from ivlite.media.subtitles import named_for

    folder, name = os.path.split(os.path.abspath(expanded(path)))
    return folder == os.path.dirname(os.path.abspath(expanded(video))) and named_for(name, os.path.basename(video))


def write(args, answer, question):
    """Writes what was asked for of an Answer; returns the exit code. What fails does not keep the rest from being written."""
    code, wanted = 0, given(args)
    for n, (name, (_, path)) in enumerate(wanted.items()):
        try:
            for written in WRITERS[name](path, answer, question):
                if not args.quiet:
                    say("wrote", written)
        except Stopped:
            say("warning", f"not written: {', '.join(f'--{name}' for name in list(wanted)[n:])}")
            raise
        except UsageError as error:  # there is nothing to write
            say("warning", error)
        except IvliteError as error:
            say("error", error)
            code = code or error.exit_code
    return code


def report(path, answer, question):
    from ivlite.agent.export import page

    for note in page.write(path, answer, question):
        say("warning", note)
    return [path]


def clips(folder, answer, _):
    from ivlite.agent.export import clips

    made = clips.write(folder, answer)
    for clip in made:
        if clip.cut is None:
            say("warning", f"no clip of {clip.evidence.id}: {clip.note}")
        elif clip.cut.early >= 0.05:
            say("warning", f"{clip.cut.path} begins {clip.cut.early:.1f} s early, with a key frame")
    return [clip.cut.path for clip in made if clip.cut]


def captions(form):
    def write(path, answer, _):
        from ivlite.agent.export import captions

        return captions.write(path, answer, form)

    return write


def chapters(path, answer, _):
    from ivlite.agent.export import chapters

    return chapters.write(path, answer)


WRITERS = {"report": report, "clips": clips, "srt": captions("srt"), "vtt": captions("vtt"), "chapters": chapters}


def show(answer, out=None):
    """Prints pictures of the evidence that an Answer names, where the terminal can show them."""
    from ivlite.cli import pictures

    out = sys.stdout if out is None else out
    kind = pictures.way(out)
    if kind is None:
        return
    if made := frames(answer):
        out.write(pictures.rows(made, kind))
        out.flush()


def frames(answer):
    """[(JPEG, "E2 00:41:12.000")] of evidence that an Answer names, one frame of each, the middle one that was shown."""
    from ivlite import media
    from ivlite.agent.export.text import cited
    from ivlite.media.thumbnails import thumbnails
    from ivlite.numbers import clock

    named = cited(answer)
    some = [e for e in answer.evidence if e.id in named and e.frames][:SHOWN]
    made = {}
    for video in answer.videos:
        mine = [e for e in some if e.video == video.handle]
        try:
            found = (
                thumbnails(media.probe(video.path, fps=25), [e.frames[len(e.frames) // 2] for e in mine])
                if mine
                else []
            )
        except MediaError:  # it is gone: the answer stands without pictures
            continue
        made |= {e.id: (thumb.jpeg, f"{e.id} {clock(thumb.time)}") for e, thumb in zip(mine, found, strict=True)}
    return [made[e.id] for e in some if e.id in made]
