"""Clips of the evidence that an answer names."""

import os
from dataclasses import dataclass

from ivlite import media
from ivlite.agent.answer import Answer, Evidence
from ivlite.agent.export.text import cited
from ivlite.errors import DiskError, MediaError, UsageError
from ivlite.files import WRITING, expanded, reason
from ivlite.media.cut import Cut, cut, suffix
from ivlite.media.probe import Probe
from ivlite.numbers import clock
from ivlite.output import check_outputs

SHORTEST = 2.0  # seconds of a clip: evidence may be one frame
WHOLE = 0.9  # of a video: evidence of so much of it is no clip
FPS = 25  # of frames without times


@dataclass(frozen=True)
class Clip:
    """The clip of one piece of evidence. cut: None where there is none, for the reason that `note` gives."""

    evidence: Evidence
    cut: Cut | None
    note: str = ""


def write(folder: str | os.PathLike[str], answer: Answer) -> list[Clip]:
    """Cuts a clip for each piece of evidence that the answer names, "E1_00-41-12.000.mp4" in `folder`, which is made.

    A video that is gone, evidence that is nearly the whole video, and a clip that would take the place of one of the videos
    have no clip and a note. Raises UsageError where the answer
    names no evidence, DiskError, Stopped.
    """
    named = [evidence for evidence in answer.evidence if evidence.id in cited(answer)]
    folder = os.fspath(expanded(folder))
    if not named:
        raise UsageError(f"{folder} has no clips: the answer names no evidence")
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:
        raise DiskError(f"folder {folder} cannot be made: {reason(error, WRITING, 'choose another')}") from None
    paths, probes = {video.handle: video.path for video in answer.videos}, {}
    made = []
    for evidence in named:
        path = paths.get(evidence.video, "")
        try:
            if path not in probes:
                probes[path] = media.probe(path, fps=FPS), suffix(path)
                probes[path][0].settle()
            made.append(clip(folder, evidence, *probes[path], list(paths.values())))
        except DiskError:
            raise
        except (MediaError, UsageError) as error:  # it is gone, or shorter than it was
            made.append(Clip(evidence, None, str(error)))
    return made


def clip(folder, evidence, found, ending, inputs):
    """The Clip of evidence from the Probe of its video. inputs: files in whose place it is not written. Raises UsageError."""
    try:
        start, end = span(evidence, found)
    except UsageError as error:
        return Clip(evidence, None, str(error))
    path = os.path.join(folder, name(evidence) + ending)
    check_outputs([path], inputs)
    return Clip(evidence, cut(found, path, start, end))


def span(evidence: Evidence, found: Probe) -> tuple[float, float]:
    """(start, end) in seconds of the clip of evidence. Raises UsageError where there is none."""
    times = found.times
    if evidence.start >= times.duration:
        raise UsageError(f"{evidence.id} begins after the end of {found.what}, which has changed")
    if evidence.end - evidence.start >= WHOLE * times.duration > SHORTEST:
        raise UsageError(f"{evidence.id} is the whole video")
    end = min(
        times.duration, max(evidence.end + times.interval, evidence.start + SHORTEST)
    )  # with the frame at its end
    return max(0.0, min(evidence.start, end - SHORTEST)), end


def name(evidence: Evidence) -> str:
    """The name of a clip without its ending: "E1_00-41-12.000"."""
    return f"{evidence.id}_{clock(evidence.start).replace(':', '-')}"
