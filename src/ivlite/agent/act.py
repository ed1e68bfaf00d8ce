"""Calls of tools: within a time, with results of bounded length, and with errors that the model can read."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ivlite.agent import say
from ivlite.agent.case import Case, Found
from ivlite.agent.film import NothingLeft, Wrong
from ivlite.agent.tools import Tool
from ivlite.errors import IvliteError, MediaError, OutOfMemoryError, Stopped
from ivlite.stop import checkpoint, using, within

LONGEST = 4000  # characters of what another program returns
WAITS = 60.0  # seconds for one
LARGEST = 1e15  # number in a call
EVERY = 0.1  # seconds between looks at the Stop
REFUSED = {"refused": "the person did not agree"}


class Dropped(Exception):
    """A tool of another program that is not used any more. The message says why."""


def called(case: Case, tool: Tool, arguments: Mapping[str, Any]) -> tuple[Found, str]:
    """(what a call gives, an error for the model or ""). Raises Stopped where the work itself was stopped, Dropped."""
    mark = case.mark()
    try:
        fitting(tool.parameters, arguments)
        if (ids := case.repeated(tool.name, arguments)) is not None:
            return Found(say.known(ids), known=True), ""
        with using(within(case.spent.deadline())):
            found = external(tool, dict(arguments)) if tool.external else tool.run(case, arguments)  # type: ignore[misc]
    except NothingLeft as nothing:
        case.undo(mark)
        return Found(say.error(str(nothing)), known=True), ""
    except Wrong as wrong:
        case.undo(mark)
        return Found(say.error(str(wrong)), known=True), str(wrong)
    except Stopped:
        case.undo(mark)
        checkpoint()  # the work itself was stopped, not only this call
        return Found(say.error("it took too long: ask for less"), known=True), ""
    except IvliteError as error:
        case.undo(mark)
        case.remarks.append(f"{tool.name}: {error}")
        return Found(say.error(reason(error)), known=True), ""
    case.answered(tool.name, arguments, found.evidence)
    return found, ""


TYPES = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
}


def fitting(schema: Mapping[str, Any], value: Any, name: str = "the arguments") -> None:
    """Raises Wrong where a value is not of its schema's type, lacks what is required, or is none of its choices."""
    given = schema.get("type")
    kinds = [given] if isinstance(given, str) else list(given or ())
    if kinds and all(kind in TYPES for kind in kinds):
        if not any(isinstance(value, TYPES[kind]) and isinstance(value, bool) <= (kind == "boolean") for kind in kinds):
            raise Wrong(f"{name} must be of type {' or '.join(kinds)}")
        if isinstance(value, int | float) and not abs(value) < LARGEST:
            raise Wrong(f"{name} is out of range")
    if "enum" in schema and value not in schema["enum"]:
        raise Wrong(f"{name} must be one of {', '.join(map(str, schema['enum']))[:200]}")
    if isinstance(value, dict):
        for missing in (key for key in schema.get("required", ()) if key not in value):
            raise Wrong(f"{missing} is missing")
        for key, inner in schema.get("properties", {}).items():
            if key in value:
                fitting(inner, value[key], key)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for item in value:
            fitting(schema["items"], item, name)


def reason(error: IvliteError) -> str:
    """What the model is told of an error; the sentence itself may name files."""
    if isinstance(error, MediaError):
        return "that part of the video cannot be decoded"
    return (
        "there is no memory for that: ask for less"
        if isinstance(error, OutOfMemoryError)
        else "that cannot be done here"
    )


def external(tool: Tool, arguments: dict[str, Any]) -> Found:
    """What another program, or a function of the caller's, returns: as data, cut where it is long. Raises Dropped."""
    if tool.answer is None:
        raise Dropped("it has no function")
    agreed = tool.agree is None or tool.agree(arguments)
    try:
        given = aside(lambda: tool.answer(arguments), WAITS) if agreed else REFUSED  # type: ignore[misc]
    except TimeoutError:
        raise Dropped(f"it gave no answer within {WAITS:.0f} seconds") from None
    except Stopped:
        raise
    except Dropped:
        raise
    except Exception as error:  # whatever a foreign function raises
        return Found(say.error(f"the tool failed: {type(error).__name__}"), known=True)
    try:
        text = given if isinstance(given, str) else say.compact(given)
    except (TypeError, ValueError, RecursionError):
        raise Dropped("what it returned is neither text nor JSON data") from None
    text = text.encode("utf-8", "replace").decode()
    data: dict[str, Any] = {"data": text[:LONGEST]} | ({"truncated": len(text)} if len(text) > LONGEST else {})
    return Found(say.compact(data))


def aside(function: Callable[[], Any], seconds: float) -> Any:
    """The result of a function that may never return, from a thread of its own. Raises TimeoutError, Stopped, what it raises."""
    out: list[Any] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            out.append(function())
        except BaseException as error:  # it is raised in the thread that waits
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="ivlite-tool", daemon=True).start()
    left = seconds
    while not done.wait(min(EVERY, left)):
        checkpoint()
        left -= EVERY
        if left <= 0:
            raise TimeoutError
    if failed:
        raise failed[0] if isinstance(failed[0], Exception) else RuntimeError(type(failed[0]).__name__)
    return out[0]
