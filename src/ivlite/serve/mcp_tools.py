"""The tools of the MCP server: what each is called with, what it does, what it returns."""

import re
from dataclasses import asdict, replace
from typing import Any

from ivlite import media
from ivlite.agent.agent import QUESTION, Agent
from ivlite.agent.answer import CONFIDENCE, Answer, Answered, Call, Evidence, Look, Video
from ivlite.agent.budget import Budget
from ivlite.agent.case import Case, NoTexts
from ivlite.agent.export import plain
from ivlite.agent.film import Wrong
from ivlite.agent.memory import Memory
from ivlite.agent.search import ground as searched
from ivlite.errors import Stopped, UsageError
from ivlite.library import KINDS, indexing
from ivlite.library.captions import Captions
from ivlite.media.thumbnails import thumbnails
from ivlite.numbers import clock
from ivlite.serve.fields import a, integer, one_of, real, several, text
from ivlite.serve.mcp_calls import Course, Desk
from ivlite.serve.mcp_fields import (
    COUNT,
    END,
    LATEST,
    LONGEST,
    NUMBER,
    SECONDS,
    START,
    STRING,
    VIDEO,
    Arguments,
    Result,
    Tool,
    listed,
    thing,
    told,
)
from ivlite.serve.wire import Refused
from ivlite.stop import using, within

SEGMENT = 1024  # vision tokens of a segment that is described
TOKENS = 512  # new tokens of an answer
FRAMES, FEWER, SIZE, LARGEST = 16, 8, 512, 1024  # of get_frames: most, usual; pixels of the longer side, usual and most
AREA = 4 << 20  # pixels of all frames of a call together
OTHERS = 15  # further videos of a question
LINES = 100  # of texts that a search returns
PART = re.compile(r"message \d+, part \d+: ")  # where a sentence about messages begins


def spanned(seconds: float) -> str:
    return clock(seconds).removeprefix("00:")


# ------------------------------------------------------------------------------------------------ index_video


def index(desk: Desk, course: Course, given: Arguments) -> Result:
    path = desk.path(given["video"])
    wait, complete = within(course.stop), True
    if "max_seconds" in given:
        wait.after(given["max_seconds"])
    with desk.indexes.taken(course.stop):
        probe = media.probe(desk.source(path), fps=indexing.FPS)
        with using(course.stop):  # the subtitles at least
            done = indexing.texts(desk.library, path, probe, progress=course.progress)
        if given.get("captions", True):
            captioner = Captions(desk.name, lambda: desk.model, SEGMENT, desk.source)
            try:
                with using(wait):
                    for _ in indexing.captions(desk.library, done, probe, captioner, progress=course.progress):
                        pass
            except Stopped:
                course.stop.check()
                complete = False
    name = desk.roots.name(path)
    data = {
        "video": name, "duration": round(done.duration, 3), "subtitles": done.cues.get("subtitle", 0),
        "speech": done.cues.get("speech", 0), "segments": done.segments, "described": done.captioned, "new": done.new,
        "complete": complete, "notes": [note.replace(path, name) for note in done.notes],
    }  # fmt: skip
    rest = "" if complete else "; the time is over: call it again to go on"
    return Result(
        f"{name} ({spanned(done.duration)}): {data['subtitles']} lines of subtitles, {data['described']} of {data['segments']} "
        f"segments described{rest}", data,
    )  # fmt: skip


INDEXED = thing(video=STRING, duration=NUMBER, subtitles=COUNT, speech=COUNT, segments=COUNT, described=COUNT, new=COUNT,
                complete={"type": "boolean"}, notes={"type": "array", "items": STRING})  # fmt: skip

# ------------------------------------------------------------------------------------------------ ask_video


def ask(desk: Desk, course: Course, given: Arguments) -> Result:
    paths = [desk.path(name) for name in (given["video"], *given.get("others", ()))]
    answer = (investigated if given.get("agent") else answered)(desk, course, paths, given)
    evidence = [asdict(e) | {"video": title_of(answer, e.video)} for e in answer.evidence]
    data = {
        "answer": answer.text, "claims": [asdict(claim) for claim in answer.claims], "evidence": evidence,
        "confidence": answer.confidence if given.get("agent") else None, "missing": answer.missing, "finish_reason": answer.finish_reason,
        "looked_at": [asdict(look) | {"video": title_of(answer, look.video)} for look in answer.looked_at],
        "remarks": list(answer.usage.get("remarks", ())),
    }  # fmt: skip
    return Result("\n".join(plain.lines(answer) if given.get("agent") else [answer.text]), plain_data(data))


def title_of(answer: Answer, handle: str) -> str:
    return next((video.title for video in answer.videos if video.handle == handle), handle)


def plain_data(data: Any) -> Any:
    """Data with lists in place of tuples."""
    if isinstance(data, dict):
        return {name: plain_data(value) for name, value in data.items()}
    return [plain_data(item) for item in data] if isinstance(data, list | tuple) else data


def answered(desk: Desk, course: Course, paths: list[str], given: Arguments) -> Answer:
    """One look at videos."""
    named = {name: given[name] for name in ("start", "end") if name in given}
    named |= {"max_frames": given["max_frames"]} if "max_frames" in given else {}
    parts = [{"type": "video", "video": desk.source(path), **named} for path in paths]
    wait = within(course.stop)
    if "max_seconds" in given:
        wait.after(given["max_seconds"])
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": given["question"]}]}]
    settings = {"max_new_tokens": given.get("max_tokens", TOKENS), "temperature": 0, "progress": course.progress}
    try:
        with desk.engine.stream(messages, stop=wait, **settings) as stream:
            course.begin("", stream.prompt.plan)
            for _ in stream:
                pass
    except Stopped:
        course.stop.check()
        raise Refused(
            400, "the time was over before the video was opened: allow more max_seconds", param="max_seconds"
        ) from None
    reply = stream.reply
    course.stop.check()
    videos = tuple(
        Video(f"v{n}", path, round(float(m.duration or 0), 3), desk.roots.name(path))
        for n, (path, m) in enumerate(zip(paths, stream.prompt.media, strict=True), 1)
    )
    seen = tuple(looked(video, m) for video, m in zip(videos, stream.prompt.media, strict=True))
    evidence = tuple(Evidence(f"E{n}", look.video, look.start, look.end, "frames") for n, look in enumerate(seen, 1))
    missing = "" if reply.finish_reason != "deadline" else "the time was over before the answer was complete"
    return Answer(
        reply.text, (), evidence, "", seen, missing, (), {"remarks": reply.warnings}, videos, reply.finish_reason
    )


def looked(video: Video, medium: Any) -> Look:
    """The frames of a video that a prompt shows."""
    times, count = medium.timestamps, len(medium.frames)
    first, last = float(times[0]), float(times[-1])
    return Look(video.handle, round(first, 3), round(last, 3), count, round((last - first) / max(1, count - 1), 3))


def investigated(desk: Desk, course: Course, paths: list[str], given: Arguments) -> Answer:
    """The agent's work on a question."""
    if "start" in given or "end" in given:
        raise Refused(
            400, "with agent, ask about a part of the video in the question, not by start and end", param="start"
        )
    stated = {
        "frames": given.get("max_frames"),
        "new_tokens": given.get("max_tokens"),
        "seconds": given.get("max_seconds"),
    }
    budget = Budget(**{name: value for name, value in stated.items() if value is not None})
    remarks: list[str] = []
    texts = Memory(desk.library, (), remarks.append)
    answer = Answer("")
    with desk.agent(course.stop):
        sources = [desk.source(path) for path in paths]
        for n, (path, source) in enumerate(zip(paths, sources, strict=True), 1):
            known = indexing.texts(desk.library, path, media.probe(source, fps=indexing.FPS))
            texts.ids[f"v{n}"] = known.id
        with Agent(desk.model, sources, budget=budget, texts=texts, progress=course.progress) as agent:
            with agent.stream(given["question"], stop=course.stop) as events:
                for event in events:
                    if isinstance(event, Call):
                        course.begin(event.name)
                    if isinstance(event, Answered):
                        answer = event.answer
    course.stop.check()
    return replace(answer, usage={"remarks": remarks})


ANSWERED = thing(
    answer=STRING,
    confidence={"enum": [*CONFIDENCE, None]},
    missing=STRING,
    finish_reason=STRING,
    remarks={"type": "array", "items": STRING},
    claims=listed(
        text=STRING,
        evidence={"type": "array", "items": STRING},
        confirmed={"type": ["boolean", "null"]},
        probability={"type": ["number", "null"]},
    ),
    evidence=listed(
        id=STRING,
        video=STRING,
        start=NUMBER,
        end=NUMBER,
        kind=STRING,
        frames={"type": "array", "items": NUMBER},
        text=STRING,
        score={"type": ["number", "null"]},
    ),
    looked_at=listed(video=STRING, start=NUMBER, end=NUMBER, frames=COUNT, every=NUMBER),
)

# ------------------------------------------------------------------------------------------------ search_video


def search(desk: Desk, course: Course, given: Arguments) -> Result:
    """Texts only: quick. Of all videos that the library knows, only those in the server's folders are told of."""
    if "video" in given:
        path = desk.path(given["video"])
        done = indexing.texts(
            desk.library, path, media.probe(desk.source(path), fps=indexing.FPS), progress=course.progress
        )
        paths = {done.id: path}
    else:
        paths = {video.id: video.path for video in desk.library.current() if desk.roots.allowed(video.path)}
    hits = desk.library.search(
        given["query"], paths, given.get("start"), given.get("end"), given.get("kinds"), given.get("limit", 10)
    )
    found: list[dict[str, Any]] = [
        {"video": desk.roots.name(paths[hit.video]), "start": round(hit.start, 3), "end": round(hit.end, 3), "kind": hit.kind,
         "text": hit.text, "score": hit.score}
        for hit in hits
    ]  # fmt: skip
    bare = sum(not desk.library.count(id, "caption") for id in paths)
    lines = [f"{f['video']} {spanned(f['start'])}-{spanned(f['end'])} ({f['kind']}) {f['text']}" for f in found]
    if not found:
        lines = ["nothing was found: ground looks at the frames of one video" if paths else "no video is indexed yet"]
    return Result("\n".join(lines), {"found": found, "searched": len(paths), "not_described": bare})


FOUND = thing(found=listed(video=STRING, start=NUMBER, end=NUMBER, kind=STRING, text=STRING, score=NUMBER), searched=COUNT,
              not_described=COUNT)  # fmt: skip

# ------------------------------------------------------------------------------------------------ get_frames


def frames(desk: Desk, course: Course, given: Arguments) -> Result:
    if "times" in given and given.keys() & {"start", "end", "count"}:
        raise Refused(400, "state either times, or start, end and count", param="times")
    film = desk.film(given["video"])
    length = film.duration
    times = given.get("times")
    if times is None:
        begin, end = film.window(given.get("start"), given.get("end"))
        number = min(given.get("count", FEWER), film.possible(begin, end))
        times = [begin + (n + 0.5) * (end - begin) / number for n in range(number)]
    elif max(times) > length:
        raise Refused(400, f"times go up to {max(times):g}, and the video ends at {length:.1f}", param="times")
    high, wide = film.probe.shape
    most = int((AREA / len(times) * max(high, wide) / max(1, min(high, wide))) ** 0.5)  # the longer side at that area
    made = thumbnails(film.probe, times, min(given.get("size", SIZE), most))
    name = desk.roots.name(film.source.path)
    data = [{"time": round(picture.time, 3), "width": picture.width, "height": picture.height} for picture in made]
    text = f"{name}: {len(made)} frames, at {', '.join(spanned(picture.time) for picture in made)}"
    return Result(
        text, {"video": name, "duration": round(length, 3), "frames": data}, [picture.jpeg for picture in made]
    )


PICTURES = thing(video=STRING, duration=NUMBER, frames=listed(time=NUMBER, width=COUNT, height=COUNT))

# ------------------------------------------------------------------------------------------------ ground


def ground(desk: Desk, course: Course, given: Arguments) -> Result:
    film = desk.film(given["video"])
    case = Case(desk.model, [film], NoTexts())
    stated = {"frames": given.get("max_frames"), "seconds": given.get("max_seconds")}
    case.spent.budget = Budget(**{name: value for name, value in stated.items() if value is not None})
    case.settings = {"temperature": 0.0, "seed": 0, "progress": course.progress}
    with desk.agent(course.stop):
        found = searched(case, {"query": given["query"], "start": given.get("start"), "end": given.get("end")})
    scan, *spans = found.evidence
    name = desk.roots.name(film.source.path)
    every = (scan.end - scan.start) / max(1, len(scan.frames) - 1)
    data = {
        "video": name, "spans": [{"start": e.start, "end": e.end, "score": round(e.score or 0.0, 4)} for e in spans],
        "searched": {"start": scan.start, "end": scan.end, "frames": len(scan.frames), "every": round(every, 3)},
    }  # fmt: skip
    lines = [f"{spanned(e.start)}-{spanned(e.end)}  {e.score or 0.0:.2f}" for e in spans]
    return Result("\n".join(lines) or f"none of {len(scan.frames)} frames shows it, one every {every:.1f} s", data)


GROUNDED = thing(video=STRING, spans=listed(start=NUMBER, end=NUMBER, score=NUMBER),
                 searched=thing(start=NUMBER, end=NUMBER, frames=COUNT, every=NUMBER))  # fmt: skip

# ------------------------------------------------------------------------------------------------ the table

TOOLS = (
    Tool(
        "index_video",
        "Index a video",
        "Reads the subtitles of a video and describes its segments, so that search_video finds what is said and shown in it. Use "
        "it once for a video that will be searched more than once; it may take minutes for a long one. What is done is kept: after "
        "a cancellation, or when max_seconds are over, the same call goes on.",
        {
            "video": VIDEO,
            "captions": told(a("boolean"), "Describe segments too (the default); false: only subtitles, in seconds."),
            "max_seconds": SECONDS,
        },
        ("video",),
        INDEXED,
        index,
        reads=False,
    ),
    Tool(
        "ask_video",
        "Ask about a video",
        "Answers a question about a video, in words. By default it looks once, at frames spread evenly over the video or over start "
        "to end. Set agent for a long video, for details that last a moment, and where you need to know when: it looks again "
        "where it matters, takes minutes, and returns claims with their evidence in seconds.",
        {
            "video": VIDEO,
            "question": told(text(QUESTION), "The question, in any language."),
            "others": told(several(VIDEO, OTHERS), "Further videos that the question is about."),
            "agent": told(a("boolean"), "Work in several steps and return evidence.", default=False),
            "start": START,
            "end": END,
            "max_frames": told(integer(2, 100_000), "Frames to look at, at most."),
            "max_tokens": told(integer(16, 8192), "Tokens of the answer, at most (with agent: of all its steps)."),
            "max_seconds": SECONDS,
        },
        ("video", "question"),
        ANSWERED,
        ask,
    ),
    Tool(
        "search_video",
        "Search in indexed videos",
        "Finds words in subtitles, speech, descriptions and notes of videos, with their times: quick, it looks at no frames. "
        "Without video it searches all that are indexed; a video that is not indexed is searched by its subtitles. For what is "
        "only seen, use ground, or index_video first.",
        {
            "query": told(text(1000), "Words; several in double quotes are one."),
            "video": VIDEO,
            "kinds": told(several(one_of(tuple(KINDS)), len(KINDS)), "Only texts of these kinds."),
            "start": START,
            "end": END,
            "limit": told(integer(1, LINES), "How many, at most.", default=10),
        },
        ("query",),
        FOUND,
        search,
    ),
    Tool(
        "get_frames",
        "Show frames of a video",
        f"Returns frames of a video as JPEG images, each with its time: those at the given times, or some spread evenly over start "
        f"to end. Use it to look yourself, such as at what ask_video or ground found. At most {FRAMES} a call.",
        {
            "video": VIDEO,
            "times": told(several(real(0, LATEST), FRAMES), "The times of the frames, in seconds."),
            "start": START,
            "end": END,
            "count": told(integer(1, FRAMES), "How many frames, without times.", default=FEWER),
            "size": told(integer(32, LARGEST), "Pixels of the longer side, at most.", default=SIZE),
        },
        ("video",),
        PICTURES,
        frames,
    ),
    Tool(
        "ground",
        "Find when something is seen",
        'Finds when something is seen in a video, from a description such as "a red car parks": spans in seconds, best first, each '
        "with the probability that its frames show it. It looks through the video: for a long one state start and end where you can.",
        {
            "video": VIDEO,
            "query": told(text(1000), "What is seen."),
            "start": START,
            "end": END,
            "max_frames": told(integer(2, 100_000), "Frames to look at, at most.", default=1024),
            "max_seconds": told(
                real(1, LONGEST), "Seconds that the search should take: it then looks at fewer frames."
            ),
        },
        ("video", "query"),
        GROUNDED,
        ground,
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLS}


def run(tool: Tool, desk: Desk, course: Course, given: Arguments) -> Result:
    """What a call returns, run in this thread. Raises Refused, IvliteError."""
    try:
        checked = tool.arguments(given)
        course.begin("opening")
        return tool.run(desk, course, checked)
    except Wrong as wrong:
        raise Refused(400, str(wrong)) from None
    except UsageError as error:
        raise Refused(400, PART.sub("", str(error))) from None
