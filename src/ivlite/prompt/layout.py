"""Applies the chat template: turns normalized messages into a Prompt, and opens their media without decoding them."""

from dataclasses import dataclass, field

import numpy as np

from ivlite import media
from ivlite.errors import UsageError
from ivlite.gguf.config import THINKING
from ivlite.prompt.messages import PIXELS, RATE, plain_messages, plain_tools
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


@dataclass
class Prompt:
    """The input of the model.

    token_ids: T ids. positions: int64 (3, T), of each token in time, height and width. next_position: of the first token
    of the answer. grid_thw: int64 (n, 3), patches of each of the n media, t in frame pairs. timestamps: per medium,
    seconds of each frame pair, floats ([] for an image). frames: per medium, the indexes of the sampled source frames.
    media: the media (media.medium.Medium); `pairs()` decodes them. warnings: sentences about the prompt (each medium has
    its own). spans: (index of the medium, first token, count) of every block of vision tokens. thinks: the answer begins
    inside <think>.
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

    @property
    def keys(self):
        """16 bytes per span: equal keys mean equal pixels. Text is compared by token ids."""
        return [self.media[medium].pair_keys()[pair] for medium, pair in self.pairs()]

    def pairs(self):
        """(index of the medium, index of the frame pair) of each span."""
        seen = [0] * len(self.media)
        for medium, _, _ in self.spans:
            yield medium, seen[medium]
            seen[medium] += 1


def build(messages, tokenizer, config, *, tools=None, enable_thinking=False, add_vision_id=False,
          continue_final_message=False, fps=None, min_frames=None, max_frames=None, min_pixels=None,
          max_pixels=None):  # fmt: skip
    """Turns a conversation into a Prompt for the assistant's next answer.

    messages: an iterable of {"role": "system" | "user" | "assistant" | "tool", "content": text or parts}. Parts: a text;
    {"type": "text", "text"}; {"type": "image", "image": source, "min_pixels", "max_pixels"}; {"type": "video", "video":
    source, "fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "start", "end" (seconds), "stream"}. Sources
    are those of `media.open_image` and `media.open_video`; `prompt.messages` accepts the forms of other clients, too. An
    assistant message may have "tool_calls".
    tools: function signatures as JSON data. enable_thinking: begins the answer as the model's chat template does (that
    of InternVideo3 does not support it). add_vision_id: writes "Picture 1: ", "Video 1: " before the media.
    continue_final_message: the last message is the beginning of the answer, and the prompt ends with its text. fps,
    min_frames, max_frames: defaults for videos; min_pixels, max_pixels: defaults for images and each frame of videos;
    None takes the model file's. Plain text never becomes a control token.

    Raises UsageError (names a message by its index from 0), MediaError (a file).
    """
    defaults = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    defaults |= {"min_pixels": min_pixels, "max_pixels": max_pixels}
    builder = Builder(tokenizer, config, {k: v for k, v in defaults.items() if v is not None}, add_vision_id)
    given, tools = plain_messages(messages), plain_tools(tools)
    if not continue_final_message:
        builder.conversation(given, tools)
        return builder.answer(THINKING[config.generation.thinking][bool(enable_thinking)])
    if given[-1].role != "assistant" or given[-1].calls:
        raise UsageError("continue_final_message needs a last message of the assistant that is a text to go on with")
    if enable_thinking:
        raise UsageError("continue_final_message and enable_thinking contradict each other: the answer has begun")
    builder.conversation(given[:-1], tools)
    return builder.continued(given[-1])


class Builder:
    """Lays out one conversation. Adjacent texts are joined and encoded as one, as with the chat template."""

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
        """Appends text; the added tokens named in `allowed` become tokens."""
        for part in self.tokenizer.split(text, allowed):
            if isinstance(part, int):
                self.token(part)
            else:
                self.waiting.append(part)

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
        """The Prompt up to the beginning of the answer; `opening` is the text with which the template begins it."""
        self.open("assistant\n")
        self.text(opening, [name for name in THOUGHT if name in self.tokenizer.added])
        return self.finished(opening.endswith(f"{THOUGHT[0]}\n"))

    def continued(self, message):
        """The Prompt up to the end of `message`, the beginning of the answer."""
        self.open("assistant\n")
        self.content(message, self.history)
        said = "".join(part.value for part in message.parts)
        return self.finished(said.rfind(THOUGHT[0]) > said.rfind(THOUGHT[1]))

    def finished(self, thinks):
        self.token()
        grids = np.array([m.grid for m in self.media], np.int64).reshape(-1, 3)
        merge = self.config.vision.spatial_merge_size
        positions, following = mrope_positions(self.ids, grids, self.config.tokens, merge)
        return Prompt(
            token_ids=self.ids, positions=positions, next_position=following, grid_thw=grids,
            timestamps=[list(m.timestamps) for m in self.media], frames=[list(m.frames) for m in self.media],
            media=self.media, warnings=self.warnings, spans=self.spans, thinks=thinks,
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------- messages

    def conversation(self, messages, tools):
        """Lays out normalized messages (prompt.messages), and tools as JSON texts."""
        roles = [message.role for message in messages]
        self.system(messages[0] if roles[:1] == ["system"] else None, tools)
        for index, message in enumerate(messages):
            if roles[index] == "user":
                self.open("user\n")
                self.content(message)
                self.close()
            elif roles[index] == "assistant":
                self.assistant(message)
            elif roles[index] == "tool":  # consecutive results share a turn
                if index == 0 or roles[index - 1] != "tool":
                    self.open("user")
                self.text("\n<tool_response>\n", self.structure)
                self.content(message)
                self.text("\n</tool_response>", self.structure)
                if index + 1 == len(messages) or roles[index + 1] != "tool":
                    self.close()

    def system(self, message, tools):
        if message is None and not tools:
            return
        self.open("system\n")
        if message is not None:
            self.content(message)
        if tools:
            self.text(("\n\n" if message is not None else "") + TOOLS_BEFORE)
            for tool in tools:
                self.text("\n" + tool)
            self.text(TOOLS_AFTER, self.structure)
        self.close()

    def assistant(self, message):
        self.open("assistant\n")
        self.content(message, self.history)
        said = any(part.value for part in message.parts)
        for number, (name, arguments) in enumerate(message.calls):
            self.text("\n" if number or said else "")
            self.text("<tool_call>", self.structure)
            self.text(f'\n{{"name": "{name}", "arguments": {arguments}}}\n')
            self.text("</tool_call>", self.structure)
        self.close()

    def content(self, message, allowed=()):
        """Lays out the content of a message; `allowed` are the added tokens that its text may contain."""
        for part in message.parts:
            if part.kind == "text":
                self.text(part.value, allowed)
            else:
                self.medium(part)

    # -------------------------------------------------------------------------------------------- media

    def medium(self, part):
        medium = self.open_medium(part)
        self.counts[part.kind] += 1
        if self.add_vision_id:
            self.text(f"{'Picture' if part.kind == 'image' else 'Video'} {self.counts[part.kind]}: ")
        t, h, w = medium.grid
        count = h * w // self.config.vision.spatial_merge_size**2
        tokens = self.config.tokens
        pad = tokens.image_pad if part.kind == "image" else tokens.video_pad
        for pair in range(t):
            if part.kind == "video":
                self.text(f"<{medium.timestamps[pair]:.1f} seconds>")
            self.token(tokens.vision_start)
            self.spans.append((len(self.media), len(self.ids), count))
            self.token(*[pad] * count, tokens.vision_end)
        self.media.append(medium)

    def open_medium(self, part):
        vision = self.config.vision
        shape = {"factor": vision.patch_size * vision.spatial_merge_size, "patch_size": vision.patch_size,
                 "temporal": vision.temporal_patch_size}  # fmt: skip
        try:
            if part.kind == "image":
                return media.open_image(part.value, **self.limits(part, PIXELS), **shape)
            return self.open_video(part, shape)
        except UsageError as error:
            raise UsageError(f"{part.where}: {error}") from error

    def open_video(self, part, shape):
        given, frames = part.settings, media.as_frames(part.value)
        names = PIXELS if "nframes" in given else (*RATE, *PIXELS)
        if "nframes" in given and "fps" in given and frames is None:
            raise UsageError("a video has both fps and nframes; give one of them")
        settings = self.limits(part, names)
        settings |= {name: given[name] for name in ("nframes", "start", "end", "stream") if name in given}
        if frames is None:
            return media.open_video(part.value, **settings, **shape)
        if frames.times is None and "fps" not in given and "fps" not in self.defaults:
            self.warnings.append(
                f"{part.where}: a video is a list of frames without fps, so its time marks "
                f"assume {settings['fps']:g} frames per second"
            )
        if frames.times is not None and "fps" not in given:  # all of them, as for a list without times
            settings = {"nframes": settings["max_frames"]} | settings
        return media.open_video(frames, **settings, **shape)

    def limits(self, part, defaulted):
        """The limits for a medium: those of the part, else the caller's for the names in `defaulted`, else the file's."""
        wanted = {k: v for k, v in self.defaults.items() if k in defaulted} | part.settings
        names = PIXELS if part.kind == "image" else (*RATE, *PIXELS)
        return media.limits(wanted, {name: getattr(getattr(self.config, part.kind), name) for name in names})
