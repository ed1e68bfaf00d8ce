"""Conversations that keep their cache: only what is new is computed."""

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from ivlite.engine.held import Held
from ivlite.engine.meter import Meter
from ivlite.engine.reply import Reply
from ivlite.engine.runner import Runner
from ivlite.engine.stream import Stream
from ivlite.errors import OutOfMemoryError, UsageError
from ivlite.machine import gigabytes
from ivlite.media.medium import Seen
from ivlite.prompt import Prompt, listed_tools, plain_tools
from ivlite.session import said, saving
from ivlite.session.asking import Asking
from ivlite.session.file import SessionFile
from ivlite.session.state import SessionState, checked
from ivlite.session.turns import QUESTION, Mark, Turn, cut
from ivlite.stop import Stop

STEP = 1024  # tokens: the room of a cache grows in these, and by half of what it was
LAST = object()  # in place of messages: those of the last question


class Session:
    """A conversation and the cache that holds it; made by `Model.session`. A context manager that closes it.

    One call at a time: while an answer is streamed, others raise UsageError, except close(), which ends it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.file: SessionFile | None = None  # where save() saves
        self.keeps = True  # whether the store keeps its long prefills; False for what will not be asked again
        self._turns: tuple[Turn, ...] = ()
        self._past: Prompt | None = None  # the tokens of all turns; its media have no pixels
        self._tools: list[str] = []
        self._question: dict[str, Any] = {}  # those of QUESTION that the call in progress was given
        self._runner: Runner | None = None
        self._closing = Stop()
        self._lock = threading.Lock()
        self._asking: Callable[[], Asking | None] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------- what it holds

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The conversation so far, as `stream` takes it."""
        return [dict(message) for turn in self._turns for message in turn.messages]

    @property
    def tokens(self) -> int:
        """The number of tokens of the conversation."""
        return self._turns[-1].tokens if self._turns else 0

    @property
    def capacity(self) -> int:
        """The most tokens that the conversation can have."""
        return int(self._model.context)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in the cache."""
        runner = self._runner
        return 0 if runner is None else runner.held.length * runner.cache.token_bytes

    # -------------------------------------------------------------------------------------------- answers

    def ask(self, text: str | Sequence[Mapping[str, Any]], videos: Iterable[Any] = (), images: Iterable[Any] = (),
            **settings: Any) -> Stream:  # fmt: skip
        """A Stream of the answer to a question; what came before stays in the cache as it was, thinking included.

        videos, images: sources, or parts such as {"type": "video", "video": "a.mp4", "fps": 2}, in order; they come before
        the text. One file, array or part may stand alone; the frames of a video are one source in a list: [frames].
        text: or the messages that follow the last answer, such as results of tools. settings: those of `Model.stream`;
        tools belong to the first question; and `told`, the token ids of an answer that was given here before, and is given
        again without being thought of: the session is as it was after it, to the bit. When the stream ends, question and
        answer are a turn of the session: a stopped answer as far as it came. An error leaves the session as it was.
        """
        return self._begun(said.question(text, videos, images), settings, kept=slice(None))

    def again(self, **settings: Any) -> Stream:
        """A Stream of another answer to the last question, which takes the place of the one that is there.

        settings: as of `ask`. What the question was asked with stays unless they say otherwise: tools, add_vision_id,
        budget, dedupe, and the beginning of the answer (continue_final_message); a session file keeps only the tools. An
        error, or a stop before the first token, leaves the session as it was. Raises UsageError if there is no question.
        """
        return self._begun(LAST, settings, kept=slice(-1))

    def stream(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Stream:
        """A Stream of the answer to a whole conversation; only what differs from the session's is computed.

        messages, settings: those of `Model.stream`. When the stream ends, messages and answer are the session.
        """
        return self._begun(messages, settings, kept=None)

    def plan(self, text: str | Sequence[Mapping[str, Any]], videos: Iterable[Any] = (), images: Iterable[Any] = (),
             **settings: Any) -> Any:  # fmt: skip
        """The Plan of a question that `ask` would ask, behind what the session holds. settings: those of `Model.plan`."""
        asking = self._asked(said.question(text, videos, images), settings, kept=slice(None))
        try:
            return self._model._planned(asking, asking.messages, **settings)
        finally:
            asking.done = True

    def _begun(self, messages: Any, settings: dict[str, Any], kept: slice | None) -> Stream:
        asking = self._asked(messages, settings, kept)
        try:
            asking.continued = bool(settings.get("continue_final_message"))
            self._question = {name: settings[name] for name in QUESTION if name in settings}
            stream: Stream = self._model._stream(asking, asking.messages, **settings)
            asking.stream = weakref.ref(stream)
            return stream
        except BaseException:
            asking.done = True
            raise

    def _asked(self, messages: Any, settings: dict[str, Any], kept: slice | None) -> Asking:
        """A call with these messages. kept: of the turns, those that the messages follow; None: they are the whole conversation.

        messages: LAST for those of the first turn that is not kept. Tools that the session knows leave the settings.
        """
        asking = self._claim()
        try:
            if messages is LAST:
                messages = self._last(settings)
            turns = asking.turns = None if kept is None else self._turns[kept]
            asking.messages = said.published(messages, turns[-1].messages[-1:] if turns else ())
            if turns and self._past is not None:
                asking.past = self._past if len(turns) == len(self._turns) else cut(self._past, turns[-1])
            if settings.get("tools") is not None:
                settings["tools"] = listed_tools(settings["tools"])
            asking.tools = plain_tools(settings.get("tools"))
            if asking.past is not None:
                if asking.messages[0]["role"] in ("system", "assistant"):
                    raise UsageError(f"a {asking.messages[0]['role']} message cannot follow the answer of a session")
                if settings.pop("tools", None) is not None and asking.tools != self._tools:
                    raise UsageError("tools belong to the first question of a session: begin another session with them")
                asking.tools = self._tools
            return asking
        except BaseException:
            asking.done = True
            raise

    def _last(self, settings: dict[str, Any]) -> list[Mapping[str, Any]]:
        """The messages of the last question. What it was asked with joins the settings, unless they say otherwise."""
        if not self._turns:
            raise UsageError("the session has no question to answer again")
        turn = self._turns[-1]
        settings |= {**turn.asked, **settings}
        if settings.get("tools") is None:
            settings["tools"] = [json.loads(tool) for tool in self._tools]
        messages = [*turn.messages[:-1], *(turn.begun if settings.get("continue_final_message") else ())]
        if not messages:
            raise UsageError("the last answer of the session follows another answer: ask a question, or undo it")
        return messages

    def _claim(self) -> Asking:
        """The right to change the session, until `done`."""
        with self._lock:
            self._check_open()
            self._check_idle()
            asking = Asking(self)
            self._asking = weakref.ref(asking)
            return asking

    def _check_open(self) -> None:
        if self._closing:
            raise UsageError("the session is closed: open another one")

    def _check_idle(self) -> None:
        asking = self._asking()
        if asking is not None and not asking.done:
            raise UsageError("the session is answering: finish or close that stream first, or use branch() before it")

    def _ready(self, capacity: int, meter: Meter) -> Runner:
        """The Runner, with room for `capacity` tokens."""
        if self._runner is None:
            self._model.free(capacity)
            self._runner = self._model.runner(capacity)
            if not self.keeps:
                self._runner.keeper = None
        cache = self._runner.cache
        if cache.capacity < capacity:
            self._model.free(capacity - cache.capacity)
            roomy = -(-max(capacity, cache.capacity * 3 // 2) // STEP) * STEP
            cache.reserve(max(capacity, min(roomy, self.capacity)))
        self._runner.meter = meter
        return self._runner

    def _add(self, asking: Asking, reply: Reply, end: int | None) -> None:
        """Makes a question and its answer a turn."""
        prompt, runner = asking.prompt, asking.runner
        ids, tail = said.kept(self._model.tokenizer, reply.token_ids, end)
        positions = np.tile(prompt.next_position + np.arange(len(ids), dtype=np.int64), (3, 1))
        past = replace(
            prompt, token_ids=[*prompt.token_ids, *ids], positions=np.concatenate([prompt.positions, positions], 1),
            next_position=prompt.next_position + len(ids), media=[Seen.of(medium) for medium in prompt.media],
            warnings=[], thinks=False,
        )  # fmt: skip
        rows = min(runner.held.length, len(past.token_ids))
        turns, before = asking.turns, 0
        if turns is None:
            turns = self._unchanged(past, len(asking.messages) - asking.continued)
            before = sum(len(turn.messages) for turn in turns)
        messages = said.answered(asking.messages, reply, asking.continued)[before:]
        begun = tuple(asking.messages[-1:]) if asking.continued else ()
        turn = Turn(tuple(messages), len(past.token_ids), rows, len(past.media), tail, self._question, begun)
        runner.truncate(rows)
        runner.held.settle()
        self._turns, self._past, self._tools = (*turns, turn), past, asking.tools

    def _unchanged(self, past: Prompt, most: int) -> tuple[Turn, ...]:
        """The turns that a conversation begins with. most: messages that they may have: an answer that goes on is none of them."""
        if self._past is None:
            return ()
        held = Held.of(self._past)
        shared, turns, messages = held.shared(past), [], 0
        for turn in self._turns:
            messages += len(turn.messages)
            if turn.tokens > shared or messages > most or turn.tail:
                break
            turns.append(turn)
        return tuple(turns)

    # -------------------------------------------------------------------------------------------- turns

    def mark(self) -> Mark:
        """This point of the conversation, for rollback. Costs nothing."""
        return Mark(self._turns)

    def rollback(self, mark: Mark) -> None:
        """Forgets every turn after a mark: what is asked then gets the bits that it would have got at the mark.

        Raises UsageError for a mark of another conversation, and where `stream` has replaced the turns before it.
        """
        claim = self._claim()
        try:
            turns = mark.turns if isinstance(mark, Mark) else None
            mine = self._turns[: len(turns or ())]
            if turns is None or len(mine) != len(turns) or any(a is not b for a, b in zip(mine, turns, strict=True)):
                raise UsageError("the mark is no point of this conversation")
            self._back(turns)
        finally:
            claim.done = True

    def undo(self) -> None:
        """Forgets the last turn. Raises UsageError if there is none."""
        if not self._turns:
            raise UsageError("the session has no turn to undo")
        self.rollback(Mark(self._turns[:-1]))

    def _back(self, turns: tuple[Turn, ...]) -> None:
        # Rows stay in the cache: the same question again needs none anew. `base` keeps others from using them.
        if turns and self._past is not None:
            self._past = cut(self._past, turns[-1])
        else:
            self._past, self._tools = None, []
        self._turns = turns

    def branch(self) -> "Session":
        """A second session at this point, with a cache of its own: what is asked in one changes nothing in the other.

        Raises OutOfMemoryError.
        """
        claim = self._claim()
        try:
            twin: Session = self._model.session()
            twin._turns, twin._past, twin._tools = self._turns, self._past, self._tools
            if self._runner is not None and self._turns:
                rows = self._turns[-1].rows
                if not self._model.free(rows):
                    size = gigabytes(rows * self._runner.cache.token_bytes)
                    raise OutOfMemoryError(
                        f"a second cache of {rows} tokens takes {size}, which are not free: close others"
                    )
                twin._runner = self._runner.copy(rows, rows + STEP, Meter())
            return twin
        finally:
            claim.done = True

    # -------------------------------------------------------------------------------------------- as data

    def state(self) -> SessionState:
        """The session without the rows of its cache, as plain data. Reads files whose digests are not known yet."""
        claim = self._claim()
        try:
            return self._state()
        finally:
            claim.done = True

    def _state(self) -> SessionState:
        if self._past is None or self._runner is None:
            return SessionState()
        past, turn, held = self._past, self._turns[-1], self._runner.held
        counts = np.cumsum([len(t.messages) for t in self._turns])
        return SessionState(
            messages=said.named(self.messages, past.media), tools=self._tools, token_ids=list(past.token_ids),
            positions=past.positions, rows=turn.rows, spans=list(past.spans), keys=past.keys,
            media=[said.described(medium) for medium in past.media],
            ends=[(n, logits) for n, logits in held.ends if n <= turn.rows],
            turns=[(int(n), t.tokens, t.rows, t.media) for n, t in zip(counts, self._turns, strict=True)], tail=turn.tail,
            tails=[t.tail for t in self._turns[:-1]],
        )  # fmt: skip

    @classmethod
    def from_state(cls, model: Any, state: SessionState, fill: Callable[[Any], object]) -> "Session":
        """A session of a SessionState; fill(cache) restores its rows into an empty cache. Raises UsageError."""
        session: Session = model.session()
        checked(state, model.config)
        if not state.turns:
            return session
        media = [said.seen(state, n) for n in range(len(state.media))]
        session._past = Prompt(
            token_ids=list(state.token_ids), positions=state.positions,
            next_position=int(state.positions[:, -1].max()) + 1,
            grid_thw=np.array([m.grid for m in media], np.int64).reshape(-1, 3),
            timestamps=[m.timestamps for m in media], frames=[m.frames for m in media], media=media,
            spans=[(medium, first, count) for medium, first, count in state.spans],
        )  # fmt: skip
        runner = model.runner(min(session.capacity, state.rows + STEP))
        fill(runner.cache)
        if runner.cache.length != state.rows:
            raise UsageError(f"the session has {state.rows} rows and {runner.cache.length} were restored")
        runner.held = Held.of(session._past).copy(state.rows)
        for rows, logits in state.ends:
            runner.held.keep_logits(logits, rows)
        session._runner, session._tools = runner, list(state.tools)
        tails = [*(state.tails or [""] * (len(state.turns) - 1)), state.tail]
        first, turns = 0, []
        for (messages, tokens, rows, count), tail in zip(state.turns, tails, strict=True):
            turns.append(Turn(tuple(state.messages[first:messages]), tokens, rows, count, tail))
            first = messages
        session._turns = tuple(turns)
        return session

    # -------------------------------------------------------------------------------------------- as a file

    @property
    def runner(self) -> Runner | None:
        """The Runner whose cache holds the conversation; None before the first answer."""
        return self._runner

    @property
    def path(self) -> str | None:
        """The path of the session's file, or None."""
        return None if self.file is None else os.fspath(self.file.path)

    def save(self, path: str | os.PathLike[str] | None = None, replace: bool = True) -> None:
        """Saves the session to its file, or to another path, which is its file from then on.

        Appends what is new since the last save. A kill at any moment leaves the older session or the newer one. replace:
        what another process has saved to the path meanwhile is replaced; False to raise OvertakenError. Raises UsageError,
        DiskError, Stopped.
        """
        claim = self._claim()
        try:
            saving.save(self, self._model, self._state(), path, replace)
        finally:
            claim.done = True

    def close(self) -> None:
        """Ends the answer in progress, and frees the cache. Later calls raise UsageError."""
        self._closing.set("closed")
        asking = self._asking()
        stream = None if asking is None else asking.stream()
        if stream is not None:
            stream.close()
        self._runner = None
