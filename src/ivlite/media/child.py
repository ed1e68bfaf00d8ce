"""The process that decodes media for another (`media.apart`): `python -m ivlite.media.child MEMORY [WRITTEN]`.

It reads requests from standard input and writes answers to standard output until the input ends. Limits of the system
bound its memory and keep it from writing files, or files of more than WRITTEN bytes.
"""

import json
import os
import resource
import signal
import sys
import threading
import time

PICTURE = 256 << 20  # bytes of one decoded picture
KEPT = 4  # media that were looked at and may be asked for again
SUBTITLES = (
    "source",
    "language",
    "title",
    "format",
    "charset",
    "counts",
    "notes",
    "path",
)  # of what is said of Subtitles
PICTURES = 8 << 20  # bytes of pictures that are sent together


def confine(memory, written=0):
    """Bounds this process: its memory, the files that grow, no core file; it ends when its parent does."""
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, written), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent says when to end
    parent = os.getppid()

    def follow():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Media:
    """The media that were looked at, by what was asked."""

    def __init__(self):
        self._found = {}

    def get(self, make, *key):
        name = json.dumps(key)
        if name not in self._found:
            while len(self._found) >= KEPT:
                del self._found[next(iter(self._found))]
            self._found[name] = make(*key)
        return self._found[name]

    def still(self, path, kind):
        from ivlite.media.image import open_still

        return self.get(lambda path, kind: open_still(path, kind), path, kind)

    def video(self, path, fps, start, end, stream):
        from ivlite import media

        return self.get(lambda *key: media.probe(key[0], **dict(zip(("fps", "start", "end", "stream"), key[1:], strict=True))),
                        path, fps, start, end, stream)  # fmt: skip


def described(probe):
    from ivlite.media.video import VideoProbe, remarks

    times = probe.times
    said = list(remarks(probe.name, times)) if isinstance(probe, VideoProbe) else probe._notes
    head = {"shape": probe.shape, "estimated": probe.estimated, "every": probe.every, "said": said}
    return head | {name: getattr(times, name) for name in ("rate", "interval", "declared", "last", "notes")}, [
        times.times
    ]


def look(media, path, kind):
    still = media.still(path, kind)
    notes = [*still.remarks(), *still.look()]
    yield {"shape": still.shape, "notes": notes}, ()


def rgb(media, path, kind, size):
    yield {}, [media.still(path, kind).rgb(tuple(size))]


def probe(media, video):
    yield described(media.video(*video))


def settle(media, video, tell):
    found = media.video(*video)
    found.settle(lambda stage, done, total: tell({"progress": [done, total]}))
    yield described(found)


def cost(media, video, chosen, size, measuring):
    import numpy as np

    scan, decode = media.video(*video).cost(np.array(chosen), tuple(size), measuring)
    yield {"cost": [float(scan), float(decode)]}, ()


def opened(media, video, chosen, size, shape):
    import numpy as np

    return media.video(*video).open(np.array(chosen), tuple(size), **shape)


def frames(media, first, **what):
    """Messages of some pictures each, and of the warnings at the end."""
    import numpy as np

    medium, waiting = opened(media, **what), []
    for picture in medium.pictures(first):
        waiting.append(np.ascontiguousarray(picture, np.uint8))
        if len(waiting) * waiting[0].nbytes >= PICTURES or len(waiting) == 1 and first == 0:
            yield {}, waiting  # the first one alone: the model may begin
            waiting, first = [], None
    yield {"notes": medium.warnings}, waiting


def tracks(media, video):
    found, skipped = media.video(*video).tracks()
    yield {"tracks": [facts(track) for track in found], "skipped": skipped}, [cues(track) for track in found]


def subtitles(media, path, duration, rate):
    from ivlite.media import subtitles

    found = subtitles.read(path, duration, rate)
    yield facts(found), [cues(found)]


def facts(found):
    """What is known of Subtitles besides their cues, for JSON."""
    return {name: getattr(found, name) for name in SUBTITLES}


def cues(found):
    return json.dumps([[cue.start, cue.end, cue.text] for cue in found.cues]).encode()


def cut(media, video, output, start, end, tell):
    from ivlite.media.cut import cut, suffix

    path = output + suffix(video[0])
    cut(media.video(*video), path, start, end, progress=lambda stage, done, total: tell({"progress": [done, total]}))
    yield {"path": path}, ()


WORK = {"look": look, "rgb": rgb, "probe": probe, "settle": settle, "cost": cost, "frames": frames,
        "tracks": tracks, "subtitles": subtitles, "cut": cut}  # fmt: skip


def answers(media, asked, tell):
    """Yields the messages that answer a request: the last one is marked, or tells an error."""
    from ivlite.errors import IvliteError

    try:
        more = {"tell": tell} if asked["work"] in ("settle", "cut") else {}
        yield from WORK[asked.pop("work")](media, **asked, **more)
        yield {"end": True}, ()
    except IvliteError as error:
        yield {"error": type(error).__name__, "text": str(error)}, ()
    except MemoryError:
        yield {"error": "MemoryError", "text": "no memory is left"}, ()
    except Exception as error:  # a defect, or what a library raises for a file that it cannot read
        yield {"error": "Exception", "text": f"{type(error).__name__}: {error}"}, ()


def main():
    confine(*map(int, sys.argv[1:]))
    from ivlite.media import stills, wire

    stills.MAX_BYTES = PICTURE
    source, target = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # what a library prints is no message
        os.dup2(nothing, stream)

    def read(size):
        data = source.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def tell(head, arrays=()):
        wire.write(target, wire.packed(head, arrays))

    media = Media()
    while True:
        try:
            asked, _ = wire.unpacked(read)
        except EOFError:
            return
        for head, arrays in answers(media, asked, tell):
            tell(head, arrays)


if __name__ == "__main__":
    main()
