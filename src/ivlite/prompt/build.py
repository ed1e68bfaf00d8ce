"""Messages to a Prompt: token ids, positions, and media that are opened and not yet decoded."""

import json
import os
from dataclasses import dataclass, field

import numpy as np

from ivlite import media
from ivlite.errors import UsageError
from ivlite.gguf.config import THINKING
from ivlite.prompt.positions import mrope_positions

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
STRUCTURE = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THOUGHT = ("<think>", "</think>")
MESSAGE_KEYS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
PIXELS = ("min_pixels", "max_pixels")
RATE = ("fps", "min_frames", "max_frames")
PART_KEYS = {
    "text": {"text"},
    "image": {"image", *PIXELS},
    "video": {"video", *RATE, *PIXELS, "nframes", "start", "end", "stream"},
}


@dataclass
class Prompt:
    """What the model is given.

    token_ids: T ids. positions: int64 (3, T). next_position: of the first token of the answer. grid_thw: int64 (n, 3),
    patches of each medium. timestamps: per medium, seconds of each frame pair ([] for an image). frames: per medium,
    the indexes of the source frames in use. media: the media, to be decoded by `pairs()`. warnings: sentences about
    the prompt (a medium has its own). spans: (medium, first token, count) of every block of vision tokens. thinks: the
    answer begins inside <think>.
    """

    token_ids: list[int]
    positions: np.ndarray
    next_position: int
    grid_thw: np.ndarray
    timestamps: list[list[float]]
    frames: list[list[int]]
    media: list
    warnings: list[str] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    thinks: bool = False


def build(messages, tokenizer, config, *, tools=None, enable_thinking=False, add_vision_id=False, fps=None,
          min_frames=None, max_frames=None, min_pixels=None, max_pixels=None):  # fmt: skip
    """Turns a conversation into a Prompt that ends where the assistant's next answer begins.

    messages: list of {"role": "system" | "user" | "assistant" | "tool", "content": str or list of parts}. Parts:
    {"type": "text", "text"}; {"type": "image", "image": path, file:// URI, PIL image or uint8 (H, W, 3), "min_pixels",
    "max_pixels"}; {"type": "video", "video": path, file:// URI or list of frames, "fps", "nframes", "min_frames",
    "max_frames", "min_pixels", "max_pixels", "start", "end" (seconds), "stream"}. An assistant message may have "tool_calls".
    tools: function signatures as JSON data. enable_thinking: opens the answer as the model's chat template does, which
    InternVideo3's has no switch for. add_vision_id: writes "Picture 1: ", "Video 1: " before the media. fps, min_frames, max_frames:
    for videos whose part says nothing; min_pixels, max_pixels: for images and for each frame of videos; None takes the
    model file's. Text never becomes a control token, whatever it spells.

    Raises UsageError (a message, by its index), MediaError (a file).
    """
    defaults = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    defaults |= {"min_pixels": min_pixels, "max_pixels": max_pixels}
    builder = Builder(tokenizer, config, {k: v for k, v in defaults.items() if v is not None}, add_vision_id)
    builder.conversation(messages, tools)
    return builder.answer(THINKING[config.generation.thinking][bool(enable_thinking)])


class Builder:
    """Lays out one conversation. Neighbouring text is kept together and encoded as one, as the template implies."""

    def __init__(self, tokenizer, config, defaults, add_vision_id):
        self.tokenizer, self.config, self.defaults, self.add_vision_id = tokenizer, config, defaults, add_vision_id
        self.ids, self.waiting = [], []
        self.media, self.spans, self.warnings = [], [], []
        self.counts = {"image": 0, "video": 0}
        kept = set(tokenizer.added) - set(tokenizer.special)
        self.structure = [name for name in STRUCTURE if name in tokenizer.added]
        self.history = sorted(kept)

    # -------------------------------------------------------------------------------------------- tokens and text

    def text(self, text, allowed=()):
        """Text; those added tokens that `allowed` names become tokens."""
        for piece in self.tokenizer.split(text, allowed):
            if isinstance(piece, int):
                self.token(piece)
            else:
                self.waiting.append(piece)

    def token(self, *ids):
        if self.waiting:
            self.ids += self.tokenizer.encode("".join(self.waiting))
            self.waiting = []
        self.ids += ids

    def open(self, role):
        self.token(self.config.tokens.im_start)
        self.text(role)

    def close(self):
        self.token(self.config.tokens.im_end)
        self.text("\n")

    def answer(self, opening):
        """The Prompt, up to where the answer begins; `opening` is what the template puts there."""
        self.open("assistant\n")
        self.text(opening, [name for name in THOUGHT if name in self.tokenizer.added])
        self.token()
        grids = np.array([m.grid for m in self.media], np.int64).reshape(-1, 3)
        merge = self.config.vision.spatial_merge_size
        positions, following = mrope_positions(self.ids, grids, self.config.tokens, merge)
        return Prompt(
            token_ids=self.ids, positions=positions, next_position=following, grid_thw=grids,
            timestamps=[list(m.timestamps) for m in self.media], frames=[list(m.frames) for m in self.media],
            media=self.media, warnings=self.warnings, spans=self.spans, thinks=opening.endswith(f"{THOUGHT[0]}\n"),
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------- messages

    def conversation(self, messages, tools):
        if not isinstance(messages, list | tuple) or not messages:
            raise UsageError("messages must be a list of at least one message")
        for index, message in enumerate(messages):
            check_message(index, message)
        roles = [m["role"] for m in messages]
        self.system(messages[0] if roles[0] == "system" else None, tools)
        for index, message in enumerate(messages):
            if roles[index] == "user":
                self.open("user\n")
                self.content(index, message)
                self.close()
            elif roles[index] == "assistant":
                self.assistant(index, message)
            elif roles[index] == "tool":  # results that follow one another share a turn
                if index == 0 or roles[index - 1] != "tool":
                    self.open("user")
                self.text("\n<tool_response>\n", self.structure)
                self.content(index, message)
                self.text("\n</tool_response>", self.structure)
                if index + 1 == len(messages) or roles[index + 1] != "tool":
                    self.close()

    def system(self, message, tools):
        if message is None and not tools:
            return
        self.open("system\n")
        if message is not None:
            self.content(0, message)
        if tools:
            if not isinstance(tools, list | tuple):
                raise UsageError("tools must be a list of function signatures")
            self.text(("\n\n" if message is not None else "") + TOOLS_BEFORE)
            for tool in tools:
                self.text("\n" + as_json("tools", tool))
            self.text(TOOLS_AFTER, self.structure)
        self.close()

    def assistant(self, index, message):
        self.open("assistant\n")
        content = message.get("content")
        self.content(index, message, self.history)
        said = bool(content) and (isinstance(content, str) or any(p["text"] for p in content))
        for number, call in enumerate(message.get("tool_calls") or []):
            name, arguments = tool_call(index, call)
            self.text("\n" if number or said else "")
            self.text("<tool_call>", self.structure)
            self.text(f'\n{{"name": "{name}", "arguments": {arguments}}}\n')
            self.text("</tool_call>", self.structure)
        self.close()

    def content(self, index, message, allowed=()):
        """The content of a message; `allowed` are the added tokens that its text may spell."""
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        for part in parts:
            if part["type"] == "text":
                self.text(part["text"], allowed)
            else:
                self.medium(index, part)

    # -------------------------------------------------------------------------------------------- media

    def medium(self, index, part):
        kind = part["type"]
        given = {k: v for k, v in part.items() if k not in ("type", kind) and v is not None}
        settings = getattr(self.config, kind)
        medium = self.opened(index, kind, part[kind], given, settings)
        self.counts[kind] += 1
        if self.add_vision_id:
            self.text(f"{'Picture' if kind == 'image' else 'Video'} {self.counts[kind]}: ")
        t, h, w = medium.grid
        count = h * w // self.config.vision.spatial_merge_size**2
        tokens = self.config.tokens
        pad = tokens.image_pad if kind == "image" else tokens.video_pad
        for pair in range(t):
            if kind == "video":
                self.text(f"<{medium.timestamps[pair]:.1f} seconds>")
            self.token(tokens.vision_start)
            self.spans.append((len(self.media), len(self.ids), count))
            self.token(*[pad] * count, tokens.vision_end)
        self.media.append(medium)

    def opened(self, index, kind, source, given, settings):
        vision = self.config.vision
        shape = {"factor": vision.patch_size * vision.spatial_merge_size, "patch_size": vision.patch_size,
                 "temporal": vision.temporal_patch_size}  # fmt: skip
        defaults = {k: v for k, v in self.defaults.items() if kind == "video" or k in PIXELS}
        listed = kind == "video" and not isinstance(source, str | bytes | os.PathLike)
        if "nframes" in given:
            if "fps" in given and not listed:
                raise UsageError(f"message {index}: a video has both fps and nframes; give one of them")
            defaults = {k: v for k, v in defaults.items() if k not in RATE}
        wanted = defaults | given
        names = (*RATE, *PIXELS) if kind == "video" else PIXELS
        file = {name: getattr(settings, name) for name in names}
        try:
            limits = media.limits(wanted, file)
            if kind == "image":
                return media.open_image(source, **limits, **shape)
            more = {name: wanted[name] for name in ("nframes", "start", "end", "stream") if name in wanted}
            if listed and "fps" not in wanted:
                self.warnings.append(
                    f"message {index}: a video is a list of frames without fps, so its time marks "
                    f"assume {limits['fps']:g} frames per second"
                )
            return media.open_video(source, **limits, **more, **shape)
        except UsageError as error:
            raise UsageError(f"message {index}: {error}") from error


# ------------------------------------------------------------------------------------------------ checks


def check_message(index, message):
    """Raises UsageError for a message that is not as published, naming its index."""
    if not isinstance(message, dict):
        raise UsageError(f"message {index} is {type(message).__name__}; it must be a dict with role and content")
    role = message.get("role")
    if role not in MESSAGE_KEYS:
        raise UsageError(f"message {index} has role {role!r}; the roles are {', '.join(MESSAGE_KEYS)}")
    if role == "system" and index:
        raise UsageError(f"message {index} is a system message: only the first message can be one")
    unknown = sorted(set(map(str, message)) - MESSAGE_KEYS[role])
    if unknown:
        raise UsageError(f"message {index} ({role}) has an unknown key {unknown[0]!r}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if not isinstance(content, str | list | tuple):
        raise UsageError(f"message {index} ({role}) needs content: a text or a list of parts")
    for part in () if isinstance(content, str) else content:
        check_part(index, role, part)


def check_part(index, role, part):
    if not isinstance(part, dict) or part.get("type") not in PART_KEYS:
        kind = part.get("type") if isinstance(part, dict) else part
        raise UsageError(f"message {index} has a part of type {kind!r}; the types are {', '.join(PART_KEYS)}")
    kind = part["type"]
    if kind not in part:
        raise UsageError(f"message {index} has a part of type {kind!r} without the key {kind!r}")
    if kind == "text" and not isinstance(part["text"], str):
        raise UsageError(f"message {index} has a text part whose text is {type(part['text']).__name__}")
    if kind != "text" and role not in ("user", "tool"):
        raise UsageError(f"message {index} ({role}) has {kind} content: only user and tool messages can")
    unknown = sorted(set(map(str, part)) - PART_KEYS[kind] - {"type"})
    if unknown:
        allowed = ", ".join(sorted(PART_KEYS[kind] - {kind}))
        raise UsageError(f"message {index} has a {kind} part with an unknown key {unknown[0]!r}; it takes {allowed}")


def tool_call(index, call):
    """Name and arguments (as JSON text) of a tool call in OpenAI's form or bare."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
        raise UsageError(f"message {index} has a tool call without a name and arguments")
    arguments = function["arguments"]
    return function["name"], arguments if isinstance(arguments, str) else as_json(f"message {index}", arguments)


def as_json(where, value):
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {value!r:.80} is not JSON data") from error
