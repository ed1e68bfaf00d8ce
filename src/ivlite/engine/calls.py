"""Tool calls: what the signatures of tools allow, the grammar of an answer that may call them, the calls in its text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivlite.engine.schemas import readable
from ivlite.errors import UsageError, shown

BEGIN, END = "<tool_call>", "</tool_call>"
SCHEMAS = ("parameters", "input_schema", "inputSchema")  # OpenAI's, Anthropic's and MCP's name of it
CHOICES = ("auto", "none", "required")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. id: of the call, unique in its conversation. text: the arguments as JSON, as the model wrote them.

    Numbers beyond a float's range are its largest, halves of surrogate pairs U+FFFD.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    text: str = field(default="", repr=False)


@dataclass(frozen=True)
class Calls:
    """The calls that an answer may have.

    functions: (name, JSON schema of the arguments) of each tool that may be called; () for an answer without calls. begins:
    the answer begins with a call. many: more than one call may follow each other.
    """

    functions: tuple[tuple[str, dict[str, Any]], ...]
    begins: bool = False
    many: bool = True


def allowed(tools: Sequence[str], choice: Any, parallel: Any) -> Calls | None:
    """The Calls of tools, signatures as JSON texts; None without tools. choice, parallel: see `Model.stream`. Raises UsageError."""
    parallel = True if parallel is None else parallel
    if not isinstance(parallel, bool):
        raise UsageError(f"parallel_tool_calls is {shown(parallel)}; it must be True or False")
    found = [signature(number, tool) for number, tool in enumerate(tools)]
    names = [name for name, _ in found]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise UsageError(f"tools has two functions with the name {shown(twice)}")
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools" and found:
        return some(choice, dict(found), parallel)
    name = named(choice)
    if not found:
        if choice not in (None, "auto", "none"):
            raise UsageError(f"tool_choice is {shown(choice)}, and there are no tools")
        return None
    if name is None:
        return Calls(() if choice == "none" else tuple(found), choice == "required", parallel)
    if name not in names:
        raise UsageError(f"tool_choice names {shown(name)}; the tools are {', '.join(names)[:300]}")
    return Calls((found[names.index(name)],), True, parallel)


def some(choice: Mapping[str, Any], found: dict[str, dict[str, Any]], parallel: bool) -> Calls:
    """The Calls of a tool_choice that allows some of the tools; a tool of it with parameters narrows those of the tool."""
    inner = choice.get("allowed_tools", choice)
    given = inner.get("tools") if isinstance(inner, Mapping) else None
    mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(given, list | tuple) or not given:
        form = '{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [...]}}'
        raise UsageError(f"tool_choice is {shown(choice)}; it must be {form}, with some of the tools")
    functions = {}
    for number, tool in enumerate(given):
        name, schema = signature(number, tool)
        if name not in found:
            raise UsageError(f"tool_choice names {shown(name)}; the tools are {', '.join(found)[:300]}")
        inner_tool = tool.get("function", tool)
        functions[name] = schema if any(key in inner_tool for key in SCHEMAS) else found[name]
    return Calls(tuple(functions.items()), mode == "required", parallel)


def named(choice: Any) -> str | None:
    """The name of the function that a tool_choice demands; None for the words of CHOICES. Raises UsageError."""
    if choice is None or (isinstance(choice, str) and choice in CHOICES):
        return None
    inner = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        words = ", ".join(f'"{word}"' for word in CHOICES)
        form = '{"type": "function", "function": {"name": NAME}}'
        raise UsageError(f"tool_choice is {shown(choice)}; it must be {words} or {form}")
    return name


def signature(number: int, tool: Any) -> tuple[str, dict[str, Any]]:
    """(name, JSON schema of the arguments) of a tool, as JSON text or data. Raises UsageError."""
    try:
        return described(number, json.loads(tool) if isinstance(tool, str) else tool)
    except RecursionError:
        raise UsageError(f"tools: the parameters of number {number} nest too deeply") from None


def described(number: int, tool: Any) -> tuple[str, dict[str, Any]]:
    """The same of a tool as JSON data."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if inner is None or not isinstance(name, str) or not name:
        raise UsageError(
            f'tools: number {number} has no "name"; a tool is a function\'s name, description and parameters'
        )
    schema = next((inner[key] for key in SCHEMAS if inner.get(key) is not None), None) or {"properties": {}}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise UsageError(
            f"tools: the parameters of {shown(name)} are {shown(schema)}; they must be a JSON schema of an object"
        )
    try:
        return name, readable({**schema, "type": "object"}, close=True)
    except UsageError as error:
        raise UsageError(f"tools: the parameters of {shown(name)}: {error}") from None


def grammar(calls: Calls, answer: dict[str, Any] | None, tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    """The grammars of llguidance of an answer that may have calls; the first is the whole answer's.

    answer: the grammar of an answer without calls, None for any text. tokens: {name: id} of the tokens that text never becomes.
    """
    begin, end = (f"<[{tokens[mark]}]>" if mark in tokens else json.dumps(mark) for mark in (BEGIN, END))
    free = "@answer" if answer else "TEXT"
    following = f"{free} | calls" if answer else "TEXT | after"
    rules = [f"start: {free if not calls.functions else 'calls' if calls.begins else following}"]
    parts = [] if answer is None else [{"name": "answer", **answer}]
    if calls.functions:
        # A line break at the end is no beginning of another call.
        more = ' ("\\n"? call)*' * calls.many + ' "\\n"?'
        rules += [f"calls: call{more}", f"after: opening rest{more}", f"call: {begin} rest"]
        # A text does not give back the mark that it has begun to hold, so there the two are one.
        rules.append(f"opening: TEXT? {begin}" if BEGIN in tokens else f"opening[lazy]: /(.|\\n)*{BEGIN}/")
        rules.append("rest: " + " | ".join(f"rest_{n}" for n in range(len(calls.functions))))
    for n, (name, schema) in enumerate(calls.functions):
        before = f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        rules.append(f'rest_{n}: {json.dumps(before)} @arguments_{n} "}}\\n" {end}')
        parts.append({"name": f"arguments_{n}", "json_schema": schema})
    # The mark is no part of a text even where it is spelled out: what looks like a call is one.
    rules.append(f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{BEGIN}(.|\\n)*/")
    return [{"name": "whole", "lark_grammar": "\n".join(rules)}, *parts]


def parsed(text: str, id: str) -> ToolCall | None:
    """The ToolCall of what stands between the marks; None for text that is no call, or is not complete."""
    decoder = json.JSONDecoder(parse_float=finite, parse_int=bounded)
    try:
        name, at = decoder.raw_decode(text, text.index(":") + 2)
        at += len(', "arguments": ')
        arguments, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict) or text[end:].strip() != "}":
        return None
    arguments, written = unpaired(arguments), text[at:end]
    return ToolCall(id, name, arguments, written if reads_as(written, arguments) else json.dumps(arguments))


def reads_as(text: str, value: Any) -> bool:
    """Whether a JSON text means a value to whoever reads it next."""
    try:
        return bool(json.loads(text) == value)
    except ValueError:  # a number with too many digits
        return False


def finite(text: str) -> float:
    """A float of a JSON number; one that is too large becomes the largest."""
    return max(-1.7976931348623157e308, min(float(text), 1.7976931348623157e308))


def bounded(text: str) -> int | float:
    """An int of a JSON number; a float where it has more digits than Python reads."""
    return int(text) if len(text) < 4000 else finite(text)


def unpaired(value: Any) -> Any:
    """JSON data in which halves of surrogate pairs, which no text can hold, are U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [unpaired(item) for item in value]
    return {unpaired(key): unpaired(item) for key, item in value.items()} if isinstance(value, dict) else value
