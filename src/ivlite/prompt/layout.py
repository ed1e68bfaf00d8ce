"""Applies the chat template: looks at the media of normalized messages, and lays them out as a Prompt."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ivlite.errors import ContextError, UsageError
from ivlite.gguf.config import THINKING
from ivlite.prompt.budget import BUDGET, Choice, Looks, Video, check_budget, differing, reason, share
from ivlite.prompt.messages import plain_messages, plain_tools
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
COUNTED = 1 << 20  # tokens up to which a text that is too long is counted to its end
LONG = 4096  # characters of a text whose ids are remembered


def time_mark(seconds):
    """The text before a frame pair."""
    return f"<{seconds:.1f} seconds>"


@dataclass
class Prompt:
    """The input of the model.

    token_ids: T ids. positions: int64 (3, T), of each token in time, height and width. next_position: of the first token
    of the answer. grid_thw: int64 (n, 3), patches of each of the n media, t in frame pairs. timestamps: per medium,
    seconds of each frame pair, floats ([] for an image). frames: per medium, the indexes of the sampled source frames.
    media: the media (media.medium.Medium); `pairs()` decodes them. warnings: sentences about the prompt (each medium has
    its own). spans: (index of the medium, first token, count) of every block of vision tokens. thinks: the answer begins
    inside <think>. choices: how the frames of each video were chosen. plan: the Plan that it follows, or None. opened:
    seconds that it took to open the media and to choose their frames.
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
    choices: list[Choice] = field(default_factory=list)
    plan: Any = None
    opened: float = 0.0

    @property
    def keys(self):
        """16 bytes per span: equal keys mean equal pixels. Text is compared by token ids."""
        return [self.media[medium].pair_keys()[pair] for medium, pair in self.pairs()]

    @property
    def cut(self):
        """The token after the last vision block, 0 without one: a chunk of the prefill ends before it."""
        return sum(self.spans[-1][1:]) if self.spans else 0

    def pairs(self):
        """(index of the medium, index of the frame pair) of each span."""
        seen = [0] * len(self.media)
        for medium, _, _ in self.spans:
            yield medium, seen[medium]
            seen[medium] += 1

    def firsts(self, start):
        """The first frame pair of each medium that is not wholly before token `start`."""
        firsts = [0] * len(self.media)
        for medium, first, count in self.spans:
            firsts[medium] += first + count <= start
        return firsts


def build(messages, tokenizer, config, *, budget=None, room=None, answer=0, progress=None, **settings):
    """Turns a conversation into a Prompt for the assistant's next answer: `draft`, then its layout with the files' own times.

    budget, room, answer: see Draft.lay. progress("scan", done, total) counts the bytes of files that are read for their
    times. Raises UsageError (names a message by its index from 0), MediaError (a file), ContextError (a budget).
    """
    prepared = draft(messages, tokenizer, config, **settings)
    prepared.settle(progress, budget)
    return prepared.lay(budget, room, answer)


def draft(messages, tokenizer, config, *, tools=None, enable_thinking=False, add_vision_id=False,
          continue_final_message=False, after=None, fps=None, min_frames=None, max_frames=None, min_pixels=None,
          max_pixels=None):  # fmt: skip
    """A Draft of a conversation: images are opened, videos are looked at, and nothing is laid out.

    messages: an iterable of {"role": "system" | "user" | "assistant" | "tool", "content": text or parts}. Parts: a text;
    {"type": "text", "text"}; {"type": "image", "image": source, "min_pixels", "max_pixels"}; {"type": "video", "video":
    source, "fps", "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "start", "end" (seconds), "stream"}. Sources
    are those of `media.open_image` and `media.probe`; `prompt.messages` accepts the forms of other clients, too. An
    assistant message may have "tool_calls".
    tools: function signatures as JSON data. enable_thinking: begins the answer as the model's chat template does (that
    of InternVideo3 does not support it). add_vision_id: writes "Picture 1: ", "Video 1: " before the media.
    continue_final_message: the last message is the beginning of the answer, and the prompt ends with its text. fps,
    min_frames, max_frames: stated for all videos; min_pixels, max_pixels: for images and each frame of videos; None
    leaves them open. after: (Prompt, text) of what was said before the messages, up to the end of the last answer, and the
    end of its text whose tokens are missing. Plain text never becomes a control token.

    Raises UsageError (names a message by its index from 0), MediaError (a file).
    """
    began = time.perf_counter()
    defaults = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    defaults |= {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given, tools = plain_messages(messages), plain_tools(tools)
    last = None
    if continue_final_message:
        given, last = given[:-1], given[-1]
        if last.role != "assistant" or last.calls:
            raise UsageError(
                "continue_final_message needs a last message of the assistant that is a text to go on with"
            )
        if enable_thinking:
            raise UsageError("continue_final_message and enable_thinking contradict each other: the answer has begun")
    looks = Looks(config, {k: v for k, v in defaults.items() if v is not None})
    for message in given:
        for part in message.parts:
            if part.kind != "text":
                looks.look(part)
    opening = THINKING[config.generation.thinking][bool(enable_thinking)]
    return Draft(looks, given, last, tools, opening, tokenizer, config, add_vision_id, after, began)


class Draft:
    """A conversation whose media were looked at; it can be laid out again and again, with other budgets."""

    def __init__(self, looks, given, last, tools, opening, tokenizer, config, add_vision_id, after=None, began=None):
        self.looks, self.given, self.last, self.tools, self.opening = looks, given, last, tools, opening
        self.tokenizer, self.config, self.add_vision_id, self.after = tokenizer, config, add_vision_id, after
        self.encoded = {}  # long texts
        self.opened = []  # the videos of the last layout
        self.began = time.perf_counter() if began is None else began
        self.looking = None  # seconds until the first layout: of opening files and reading their indexes
        self.measuring = 0.0  # seconds of measuring how fast files are decoded
        self.planned = None  # frames of each video, from the times that their containers declare
        self.budget = None  # the one that was stated for the last layout

    @property
    def videos(self):
        return self.looks.videos

    @property
    def opening_seconds(self):
        """Seconds of opening the media and reading their frames' times, with frames that were decoded for a plan; 0 without media."""
        return self.looking + self.measuring if self.looks.found else 0.0

    @property
    def estimated(self):
        """Whether the times of a video are those that its container declares."""
        return any(video.probe.estimated for video in self.videos)

    def settle(self, progress=None, budget=None):
        """Replaces the times that containers declare by those of the files; `planned` remembers what they had led to."""
        if self.estimated:
            self.planned = self._shared(budget)
            for video in self.videos:
                video.settle(progress)

    def _shared(self, budget, limit=None):
        whole = BUDGET if budget is None else budget
        return share(self.videos, whole if limit is None else limit, lifted=budget is not None)

    def lay(self, budget=None, room=None, answer=0, most=None):
        """The Prompt. budget: stated vision tokens of all videos; None for BUDGET, or less where the room is smaller.

        room: most tokens of prompt and answer. answer: tokens that are kept for the answer, at most half of the room; with
        the text they are rounded up to eighths of the room, so that other questions about a video see the same frames.
        most: vision tokens of all videos, if fewer are wanted than the budget allows, for another reason.
        Where the room is too small even for a pair of each video, the prompt is laid out nevertheless. Raises
        ContextError for a stated budget that what is stated about the videos exceeds.
        """
        self.budget = budget
        frames, narrowed = self._shared(budget), ""
        if budget is not None:
            check_budget(self.videos, frames, budget)
        if most is not None and (fewer := self._shared(budget, most)) != frames:
            frames, narrowed = fewer, "limit"
        laid = self._laid(frames, budget, narrowed)
        keep = 0 if room is None else min(answer, room // 2)
        while room is not None and (over := len(laid.token_ids) + keep - room) > 0:
            over += self._spare(laid, keep, room)
            spent = sum(v.tokens(n) for v, n in zip(self.videos, frames, strict=True))
            fewer = self._shared(budget, spent - self._excess(laid, over))
            if fewer == frames:
                break
            frames, narrowed = fewer, "context"
            laid = self._laid(frames, budget, narrowed)
        if self.looking is None:
            self.looking = time.perf_counter() - self.began
        return laid

    def cost(self, laid, measuring=True, held=0):
        """Seconds for the media of a Prompt of this draft: (opening files and reading their frames' times, decoding).

        held: tokens whose work is done; their frames are not decoded. Measuring counts as opening: a run does it, too.
        """
        places, firsts = {id(m): n for n, m in enumerate(laid.media)}, laid.firsts(held)
        began, total = time.perf_counter(), np.array([self.looking, 0.0])
        for video, medium in zip(self.videos, self.opened, strict=True):
            left = laid.frames[place := places[id(medium)]][firsts[place] * video.shape["temporal"] :]
            if left or video.probe.estimated:
                scan, decode = video.probe.cost(np.array(left or laid.frames[place]), video.size, measuring)
                total += scan, decode if left else 0.0
        self.measuring = max(self.measuring, time.perf_counter() - began)  # again, it is remembered
        total[0] += self.measuring
        return tuple(total.tolist())

    def _spare(self, laid, keep, room):
        """Tokens that are left free for longer questions than this: text and answer take whole eighths of the room."""
        bounds = {owner: (first, last) for owner, first, last in self._extents(laid)}
        rest = len(laid.token_ids) + keep - sum(last - first for first, last in bounds.values())
        step = max(1, room // 8)
        return max(0, min(-(-rest // step) * step, room // 2) - rest) if bounds else 0

    def _extents(self, laid):
        """(medium, first token, end) of each video that is laid out here, its time marks included."""
        videos = {id(medium) for medium in self.opened}
        for owner in sorted({owner for owner, _, _ in laid.spans if id(laid.media[owner]) in videos}):
            own = [(first, first + count) for medium, first, count in laid.spans if medium == owner]
            yield owner, own[0][0], own[-1][1]

    def _excess(self, laid, over):
        """Vision tokens whose frame pairs, with their time marks and borders, are `over` tokens; at least a pair's."""
        gaps = [
            b - (a + n) for (own, a, n), (other, b, _) in zip(laid.spans, laid.spans[1:], strict=False) if own == other
        ]
        pairs = [video.pair for video in self.videos if video.open]
        if not pairs:
            return 0
        per = sum(pairs) / len(pairs)
        gap = sum(gaps) / len(gaps) if gaps else 12
        return max(int(over * per / (per + gap)), min(pairs))

    def _laid(self, frames, budget, narrowed):
        lifted = budget is not None
        opened = {key: found for key, found in self.looks.found.items() if not isinstance(found, Video)}
        choices, self.opened = [], []
        keys = [key for key, found in self.looks.found.items() if isinstance(found, Video)]
        planned = self.planned or [None] * len(keys)
        for key, video, count, before in zip(keys, self.videos, frames, planned, strict=True):
            opened[key] = medium = video.medium(count)
            self.opened.append(medium)
            by = reason(video, count, lifted, narrowed)
            choices.append(differing(video.choice(medium, by, None), before if not narrowed else None))
        builder = Builder(self.tokenizer, self.config, opened, self.add_vision_id, self.encoded)
        if self.after is not None:
            builder.follow(*self.after)
        builder.conversation(self.given, self.tools)
        laid = builder.answer(self.opening) if self.last is None else builder.continued(self.last)
        laid.warnings, laid.choices = [*self.looks.warnings], choices
        return laid


class Builder:
    """Lays out one conversation. Adjacent texts are joined and encoded as one, as with the chat template."""

    def __init__(self, tokenizer, config, opened, add_vision_id, encoded):
        self.tokenizer, self.config, self.opened, self.add_vision_id = tokenizer, config, opened, add_vision_id
        self.encoded = encoded  # text -> ids of long texts: a conversation is laid out more than once
        self.shown = 0  # no fewer tokens than media and their marks have
        self.ids, self.waiting = [], []
        self.media, self.spans = [], []
        self.past = None
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
            self.ids += self._ids("".join(self.waiting))
            self.waiting = []
        self.ids += ids
        if len(self.ids) - self.shown > COUNTED and len(self.ids) - self.shown > self.most:
            self.refuse()

    def _ids(self, text):
        if len(text) < LONG:
            return self.tokenizer.encode(text)
        if text not in self.encoded:
            try:
                most = self.most if 4 * len(text) > COUNTED else None  # a token is a byte at least
                self.encoded[text] = self.tokenizer.encode(text, most=most)
            except ContextError:
                self.refuse()
        return self.encoded[text]

    @property
    def most(self):
        """Tokens of text that are counted: a prompt with more never fits."""
        return max(COUNTED, 2 * self.config.text.context_length)

    def refuse(self):
        context = f"the context holds {self.config.text.context_length:,}: shorten the text"
        raise ContextError(f"the prompt has more than {self.most:,} tokens of text and {context}") from None

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

    def follow(self, past, tail):
        """Goes on after a Prompt that ends with an answer: `tail`, the text that it lacks, and the end of its turn."""
        self.past = past
        for medium in past.media:
            self.counts[medium.kind] += 1
        self.text(tail, self.history)
        self.close()

    def finished(self, thinks):
        self.token()
        grids = np.array([m.grid for m in self.media], np.int64).reshape(-1, 3)
        merge = self.config.vision.spatial_merge_size
        positions, following = mrope_positions(self.ids, grids, self.config.tokens, merge)
        media, spans, ids = self.media, self.spans, self.ids
        if (past := self.past) is not None:
            before, owners = len(past.token_ids), len(past.media)
            positions = np.concatenate([past.positions, positions + past.next_position], 1)
            ids, following, media = past.token_ids + ids, following + past.next_position, past.media + media
            spans = past.spans + [(owner + owners, first + before, count) for owner, first, count in spans]
            grids = np.concatenate([past.grid_thw, grids])
        return Prompt(
            token_ids=ids, positions=positions, next_position=following, grid_thw=grids,
            timestamps=[list(m.timestamps) for m in media], frames=[list(m.frames) for m in media],
            media=media, spans=spans, thinks=thinks,
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
            self.text(f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n')
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
        medium = self.opened[id(part)]
        self.counts[part.kind] += 1
        if self.add_vision_id:
            self.text(f"{'Picture' if part.kind == 'image' else 'Video'} {self.counts[part.kind]}: ")
        t, h, w = medium.grid
        count = h * w // self.config.vision.spatial_merge_size**2
        tokens = self.config.tokens
        pad = tokens.image_pad if part.kind == "image" else tokens.video_pad
        for pair in range(t):
            mark = time_mark(medium.timestamps[pair]) if part.kind == "video" else ""
            self.shown += len(mark) + count + 2
            self.text(mark)
            self.token(tokens.vision_start)
            self.spans.append((len(self.media), len(self.ids), count))
            self.token(*[pad] * count, tokens.vision_end)
        self.media.append(medium)
