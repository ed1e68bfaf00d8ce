"""Normalizes messages: accepts the forms of several clients and turns them into one; all others raise UsageError.

Besides the published form it accepts the parts of OpenAI's, vLLM's, llama.cpp's, transformers', Qwen's (whose parts need no
type), Anthropic's and Ollama's clients, null values, objects with model_dump() (as clients return them), and any iterable in place of a list.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice, starmap

from ivlite.errors import UsageError, shown
from ivlite.numbers import scalar
from ivlite.stop import checkpoint

MOST = 1_000_000  # messages, parts or calls: an infinite iterable must not fill the memory
ROLES = {"developer": "system", "function": "tool"}  # other names of roles
NOT_READ = {"name", "id", "type", "status", "annotations", "reasoning", "reasoning_content", "thinking"}
MESSAGE_KEYS = {
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name", "images"},
    "assistant": {"role", "content", "tool_calls", "function_call", "refusal", *NOT_READ},
    "tool": {"role", "content", "tool_call_id", "name", "tool_name"},
}
TYPES = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "text",
    "image": "image", "image_url": "image", "input_image": "image",
    "video": "video", "video_url": "video", "input_video": "video",
}  # fmt: skip
INLINE = ("data", "base64")  # keys whose text is base64
PLACES = ("url", "path", *INLINE, "source")
SOURCES = {
    "text": ("text", "refusal"),
    "image": ("image", "image_url", "input_image", *PLACES),
    "video": ("video", "video_url", "input_video", *PLACES),
}
PIXELS = ("min_pixels", "max_pixels")
RATE = ("fps", "min_frames", "max_frames")
SETTINGS = {
    "text": (),
    "image": (*PIXELS, "detail"),
    "video": (*RATE, *PIXELS, "nframes", "start", "end", "stream", "detail"),
}
OTHER_NAMES = {"video_start": "start", "video_end": "end", "num_frames": "nframes", "sample_fps": "fps"}
DESCRIPTIONS = {"format", "mime_type", "mimeType", "media_type", "uuid", "annotations", "logprobs", "cache_control"}
DETAIL = {"auto": None, "high": None, "original": None, "low": 512 * 512}  # most pixels of an image


@dataclass
class Part:
    """A part of a message. kind: "text", "image" or "video". value: the text, or the source of the medium."""

    kind: str
    value: object
    settings: dict = field(default_factory=dict)
    where: str = ""


@dataclass
class Message:
    """role: "system", "user", "assistant" or "tool". calls: (name, arguments as JSON text) of each tool call.

    ids: of the calls, None where there is none. answers: the id of the call whose result a message is, or None.
    """

    role: str
    parts: list[Part]
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    answers: str | None = None


def plain_messages(messages, ids=()):
    """The Messages of a conversation, an iterable of mappings. Raises UsageError, naming message and part.

    Results of tools are put into the order of their calls, which is all that a model knows of them, where they name them.
    ids: of the calls before the messages.
    """
    given = listed(messages)
    if not given:
        raise UsageError("messages must be a list of at least one message")
    out = []
    for tools, group in groupby(starmap(plain_message, enumerate(given)), lambda message: message.role == "tool"):
        found = list(group)
        named = [message.answers for message in found] if tools else []
        if None not in named and len(set(named)) == len(named) and set(named) <= set(ids):
            found.sort(key=lambda message: ids.index(message.answers) if tools else 0)
        out += found
        ids = found[-1].ids
    return out


def check_message(index, message):
    """Raises UsageError for a malformed message, naming its index."""
    plain_message(index, message)


def plain_message(index, message):
    checkpoint()
    where = f"message {index}"
    keys = mapping(message)
    if keys is None:
        raise UsageError(f"{where} is {type(message).__name__}; it must be a dict with role and content")
    role = keys.get("role")
    role = ROLES.get(role, str.__str__(role)) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in MESSAGE_KEYS:
        raise UsageError(f"{where} has role {shown(role)}; the roles are {', '.join(MESSAGE_KEYS)}")
    if role == "system" and index:
        raise UsageError(f"{where} is a system message: only the first message can be one")
    refuse_unknown(f"{where} ({role})", keys, MESSAGE_KEYS[role])
    calls = tool_calls(where, keys)
    content = keys.get("content", keys.get("refusal"))
    if content is None and not calls and "images" not in keys:
        raise UsageError(f"{where} ({role}) needs content: a text or a list of parts")
    parts = [] if content is None else content_parts(where, role, content)
    images = listed(keys.get("images", []))
    if images is None:
        raise UsageError(f"{where} ({role}) has images that are {shown(keys['images'])}; they must be a list")
    parts = [*(Part("image", image, {}, where) for image in images), *parts]
    ids = [call_id(call) for call in listed(keys.get("tool_calls", []))]
    return Message(role, parts, calls, ids, call_id({"id": keys.get("tool_call_id")}))


def content_parts(where, role, content):
    if isinstance(content, str):
        return [Part("text", text(where, content))]
    given = [content] if mapping(content) is not None else listed(content)
    if given is None:
        raise UsageError(f"{where} ({role}) needs content: a text or a list of parts, not {shown(content)}")
    named = [where if len(given) == 1 else f"{where}, part {number}" for number in range(len(given))]
    return [plain_part(at, role, part) for at, part in zip(named, given, strict=True)]


def plain_part(where, role, part):
    checkpoint()
    if isinstance(part, str):
        return Part("text", text(where, part))
    keys = mapping(part)
    name = part if keys is None else keys.get("type", next((key for key in TYPES if key in keys), None))
    if keys is None or not isinstance(name, str) or name not in TYPES:
        raise UsageError(f"{where} has a part of type {shown(name)}; the types are text, image, video")
    kind = TYPES[name]
    keys = renamed(where, {key: value for key, value in keys.items() if key != "type"})
    if kind != "text" and role not in ("user", "tool"):
        raise UsageError(f"{where} ({role}) has {kind} content: only user and tool messages can")
    refuse_unknown(
        f"{where} has {'an' if kind == 'image' else 'a'} {kind} part, which",
        keys,
        {*SOURCES[kind], *SETTINGS[kind]},
        DESCRIPTIONS,
    )
    value, more = source(where, kind, keys)
    if kind == "text":
        return Part("text", text(where, value))
    settings = {key: keys[key] for key in SETTINGS[kind] if key in keys}
    if twice := settings.keys() & more.keys():
        raise UsageError(f"{where} has {min(twice)} both in the part and beside its source; give one of them")
    return Part(kind, value, sharpness(where, settings | more), where)


def renamed(where, keys):
    """The keys of a part under their own names. Raises UsageError where one is given under two names."""
    out = {}
    for key, value in keys.items():
        name = OTHER_NAMES.get(key, key) if isinstance(key, str) else key
        if name == "frames":  # how many, or themselves
            name = "video" if scalar(value) is None else "nframes"
        if name in out:
            raise UsageError(f"{where} has both {name} and another name of it; give one of them")
        out[name] = value
    return out


def source(where, kind, keys):
    """(source of the medium, settings beside it), unwrapped from the forms of all clients."""
    found = [key for key in SOURCES[kind] if key in keys]
    if not found:
        raise UsageError(f"{where} has a part of type {kind!r} without the key {kind!r}")
    if len(found) > 1:
        raise UsageError(f"{where} has both {found[0]} and {found[1]} in one part; give one of them")
    value, settings = keys[found[0]], {}
    inner = mapping(value)
    if inner is not None and kind != "text":
        inner = renamed(where, {key: value for key, value in inner.items() if key != "type"})
        refuse_unknown(f"{where}: {found[0]}", inner, {*PLACES, *SETTINGS[kind]}, DESCRIPTIONS)
        value, settings = source(where, kind, inner)
        settings = settings | {key: inner[key] for key in SETTINGS[kind] if key in inner}
    elif found[0] in INLINE and isinstance(value, str) and not value[:5].lower() == "data:":
        value = f"data:;base64,{value}"
    return value, settings


def sharpness(where, settings):
    """The settings, with OpenAI's `detail` replaced by max_pixels."""
    detail = settings.pop("detail", "auto")
    if not isinstance(detail, str) or detail not in DETAIL:
        raise UsageError(f"{where}: detail is {shown(detail)}; it must be one of {', '.join(DETAIL)}")
    most = DETAIL[detail]
    return settings if most is None else {"max_pixels": most} | settings


def tool_calls(where, keys):
    """(name, arguments as JSON text) of each tool call of a message, in OpenAI's form or without its wrapper."""
    given = listed(keys.get("tool_calls", []))
    if given is None:
        raise UsageError(f"{where} has tool_calls that are {shown(keys['tool_calls'])}; they must be a list of calls")
    if "function_call" in keys:  # OpenAI's older form
        given.append(keys["function_call"])
    return [tool_call(where, call) for call in given]


def call_id(call):
    """The id of a tool call, None for none."""
    found = (mapping(call) or {}).get("id")
    return found if isinstance(found, str) else None


def tool_call(where, call):
    outer = mapping(call) or {}
    function = mapping(outer.get("function", outer)) or {}
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or arguments is None:
        raise UsageError(f"{where} has a tool call without a name and arguments")
    arguments = arguments if isinstance(arguments, str) else as_json(where, arguments)
    return text(where, name), text(where, arguments)


def listed_tools(tools):
    """The function signatures as a list, of any iterable or None. Raises UsageError."""
    given = [] if tools is None else listed(tools)
    if given is None:
        raise UsageError("tools must be a list of function signatures")
    return given


def plain_tools(tools):
    """The function signatures as JSON texts. Raises UsageError."""
    texts = []
    for number, tool in enumerate(listed_tools(tools)):
        signature = mapping(tool)
        if signature is None:
            raise UsageError(f"tools: number {number} is {shown(tool)}; it must be a function signature as JSON data")
        texts.append(as_json("tools", tool if isinstance(tool, dict) else signature))
    return texts


# ------------------------------------------------------------------------------------------------ values


def mapping(value):
    """A mapping, or an object of a client, as a dict without its null values; None for anything else."""
    if not isinstance(value, Mapping) and callable(getattr(type(value), "model_dump", None)):
        value = value.model_dump()
    if not isinstance(value, Mapping):
        return None
    return {key: item for key, item in value.items() if item is not None}


def listed(value):
    """The items of an iterable as a list; None for texts, mappings, sets and more than MOST items."""
    if isinstance(value, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(value, Iterable):
        return None
    try:
        items = list(islice(value, MOST + 1))
    except TypeError:  # 0-d arrays only look iterable
        return None
    return items if len(items) <= MOST else None


def refuse_unknown(what, keys, known, unread=frozenset()):
    """Raises UsageError for the first key in neither set; suggests the most similar known one."""
    for key in keys:
        if not isinstance(key, str) or (key not in known and key not in unread):
            near = difflib.get_close_matches(key, known, 1) if isinstance(key, str) and len(key) < 80 else ()
            advice = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"
            raise UsageError(f"{what} has an unknown key {shown(key)}; {advice}")


def text(where, value):
    """A text as valid Unicode: joins surrogate pairs. Raises UsageError for lone surrogates."""
    if not isinstance(value, str):
        raise UsageError(f"{where} has a text part whose text is {type(value).__name__}")
    return plain_text(where, value)


def plain_text(where, value):
    """A str of any class as one of valid Unicode; see `text`."""
    value = str.__str__(value)
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        try:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            at = f"character {error.start} is half of a surrogate pair"
            raise UsageError(f"{where}: the text is not valid Unicode ({at}) and has no UTF-8 form") from None
    return value


def plain_value(value):
    """A mapping as a dict, a number of another library as int or float. Raises TypeError for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    found = scalar(value)
    if found is None:
        raise TypeError
    return found if isinstance(found, int) else float(found)


def as_json(where, value):
    """JSON text as the model's chat template writes it. Raises UsageError for values that JSON cannot represent."""
    try:
        return text(where, json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain_value))
    except UsageError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {shown(value)} is not JSON data") from error


def json_data(where, value):
    """JSON data in Python's own types and valid Unicode. Raises UsageError; see `as_json`."""
    return json.loads(as_json(where, value))
