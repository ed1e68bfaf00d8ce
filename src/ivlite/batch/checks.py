"""What of an input makes no sense whatever the model and the files are: the checks with which `Model.stream` begins."""

from collections.abc import Mapping
from typing import Any

from ivlite.engine.grammar import check_rules
from ivlite.engine.settings import Settings
from ivlite.errors import UsageError, shown
from ivlite.media.source import limits
from ivlite.model import Model
from ivlite.numbers import number, whole
from ivlite.prompt.budget import check_nframes
from ivlite.prompt.messages import PIXELS, RATE, plain_messages, plain_tools


def check_settings(given: Mapping[str, Any]) -> None:
    """Raises UsageError for arguments of Model.stream that it refuses."""
    asked = {**(Model.stream.__kwdefaults__ or {}), **given}
    for name in ("enable_thinking", "dedupe"):
        if not isinstance(asked[name], bool):
            raise UsageError(f"{name} is {shown(asked[name])}; it must be true or false")
    if asked["budget"] is not None:
        whole("budget", asked["budget"])
    check_rules(Settings.of(asked, None, plain_tools(asked["tools"])).rules)


def check_medium(kind: str, source: Any, given: Mapping[str, Any]) -> None:
    """Raises UsageError for settings of an image or a video that are refused."""
    names = PIXELS if kind == "image" else (*RATE, *PIXELS)
    limits(given, {name: given[name] for name in names if name in given})
    if "nframes" in given:
        if "fps" in given and not isinstance(source, list):  # of frames it is their rate
            raise UsageError("a video has both fps and nframes; give one of them")
        check_nframes(whole("nframes", given["nframes"]), {name: given[name] for name in RATE if name in given})
    times = {name: number(name, given[name], 0) for name in ("start", "end") if name in given}
    if "end" in times and times["end"] <= times.get("start", 0.0):
        raise UsageError(f"end ({times['end']:g} s) must come after start ({times.get('start', 0.0):g} s)")
    if "stream" in given:
        whole("stream", given["stream"], 0)


def check_texts(*texts: str | None) -> None:
    """Raises UsageError for a text that has no UTF-8 form."""
    plain_messages([{"role": "user", "content": "".join(text or "" for text in texts)}])
