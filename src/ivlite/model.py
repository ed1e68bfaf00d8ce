"""The Python API: load a model file, ask it about text, images and videos, inspect every stage."""

import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from ivlite import ops, plan, prompt
from ivlite.engine import vision
from ivlite.engine.grammar import Grammars
from ivlite.engine.logprobs import MOST
from ivlite.engine.meter import Meter, Progress
from ivlite.engine.reply import Reply, TokenLogprob
from ivlite.engine.runner import Runner
from ivlite.engine.settings import Settings
from ivlite.engine.stream import Stream
from ivlite.errors import ContextError, OutOfMemoryError, Stopped, UsageError, shown
from ivlite.gguf import config as configuration
from ivlite.machine import MARGIN, available_memory, gigabytes
from ivlite.numbers import whole
from ivlite.plan.planner import WORTH_MEASURING, Planner
from ivlite.prompt import Prompt
from ivlite.session import Session, saving
from ivlite.session.pool import Pool
from ivlite.session.store import Store
from ivlite.stop import Stop, Work, using, within

Messages = Sequence[Mapping[str, Any]]
W = TypeVar("W", bound=Work[Any])


def cache_bytes_per_token(text: configuration.TextConfig, kv: str) -> int:
    """Bytes per token of a cache of that kind, over all layers of a TextConfig."""
    return ops.cache_token_bytes(text.kv_lora_rank, text.qk_rope_head_dim, kv)


@dataclass(frozen=True)
class MediaLimits:
    """Defaults for videos and images whose message sets no limits; None: the model file's.

    fps, min_frames, max_frames: of videos. min_pixels, max_pixels: of each frame and image.
    """

    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def given(self) -> dict[str, Any]:
        """The limits that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Model:
    """A loaded model. Each call is a conversation of its own; calls that begin alike share what was computed (`session.pool`).

    Any thread may call any method; concurrent calls take turns in the kernels. Long calls take a Stop. When it is set
    they raise Stopped; `chat` and `stream` return the answer so far instead.
    """

    def __init__(self, config: configuration.Config, network: Any, tokenizer: Any, *, path: Path | None = None,
                 context: int | None = None, kv: str = "q8", media: MediaLimits = MediaLimits(),
                 store: Store | None = None) -> None:  # fmt: skip
        self.config, self.tokenizer, self.path = config, tokenizer, path
        self.context_stated, self.kv, self.media_limits = context is not None, kv, media
        self.context = config.text.context_length if context is None else context
        self.load_seconds = 0.0
        self._room: int | None = None  # the last of room()
        self.planner: Planner | None = None
        self.engine: Any = None  # an open engine.batch.Engine: it runs all answers
        self._network, self._closing = network, Stop()
        self._works: weakref.WeakSet[Work[Any]] = weakref.WeakSet()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._pool = Pool(network, kv, store)
        self.store, self.remarks = store, list[str]()  # remarks: sentences for the next reply
        self._lock = threading.RLock()
        self.grammars = Grammars(tokenizer, config.text.vocab_size, config.tokens.eos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the calls in progress, and frees weights, threads and file. Later calls raise UsageError."""
        self._closing.set("closed")
        with self._lock:
            works: list[Any] = [*self._works, *self._sessions]
        for work in works:
            work.close()
        self._pool.close()
        if self.planner is not None:
            self.planner.sample = None
        network, self._network = self._network, None
        if network is not None:
            network.source.close()

    @property
    def network(self) -> Any:
        """The loaded network. Raises UsageError for a closed model."""
        self._check_open()
        return self._network

    @property
    def threads(self) -> int:
        return self.network.ops.threads

    @property
    def device(self) -> str:
        """What computes: "cpu", "reference", or "cuda:0" and the card's name."""
        operations = self.network.ops
        return str(getattr(operations, "device", operations.name))

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as stored in the file."""
        return sum(t.nbytes for t in self.network.source.tensors.values())

    @property
    def token_nbytes(self) -> int:
        """Bytes of a token's rows in a cache."""
        return cache_bytes_per_token(self.config.text, self.kv)

    @property
    def cache_nbytes(self) -> int:
        """Bytes of a full cache."""
        return self.context * self.token_nbytes

    @property
    def caches(self) -> Pool:
        """The caches of calls that have ended."""
        return self._pool

    @property
    def sessions(self) -> list[Session]:
        """The open sessions."""
        with self._lock:
            return list(self._sessions)

    def room(self, held: int = 0) -> int:
        """The most tokens of prompt and answer: a stated context, or what the model and the free memory hold now.

        held: bytes of the cache that the conversation has already.
        """
        free = None if self.context_stated else self.free_memory()
        if free is None:
            return self.context
        free, row = free + held + self._pool.nbytes + self._pool.coming, self.token_nbytes
        room = max(0, min(self.context, (free - MARGIN) // row))
        last = self._room  # kept where little has changed: another question about a video should see the same frames
        if last is None or abs(room - last) > min(last // 8, MARGIN // 4 // row):
            self._room = last = room
        return last

    def settle_room(self) -> None:
        """From now on there is as much room as now, whatever calls take meanwhile: prompts are laid out alike at any moment."""
        self.context, self.context_stated = self.room(), True

    def free_memory(self) -> int | None:
        """Bytes that caches may still take: of the card that computes, or of the machine."""
        on_card = getattr(self.network.ops, "free_memory", None)
        return on_card() if on_card else available_memory()

    def free(self, tokens: int) -> bool:
        """Whether the rows of so many tokens fit in memory; frees those of earlier calls if that is needed."""
        return self._pool.spare(tokens * self.token_nbytes)

    def prepare(self, messages: Messages, *, tools: Sequence[Any] | None = None, enable_thinking: bool = False,
                add_vision_id: bool = False, continue_final_message: bool = False, budget: int | None = None,
                dedupe: bool = False, max_new_tokens: int | None = 256, progress: Progress | None = None,
                stop: Stop | None = None) -> Prompt:  # fmt: skip
        """Turns messages into a Prompt: token ids, positions and media opened but not yet decoded.

        continue_final_message: the last message is the beginning of the answer, and generation continues it. budget: most
        vision tokens of all videos together; None: 16,384, or fewer where the context is smaller. Videos whose fps,
        max_frames or nframes is stated keep it; the others share the budget by their lengths. max_new_tokens: those of
        the answer, for which the context keeps room. dedupe: leaves out frame pairs that show nearly what the one before
        them shows; the others keep their time marks and positions, a warning says how many. It decodes each video once
        more. progress: stage "scan", bytes of files read for their frames' times, and "dedupe", frames.
        Raises UsageError (a message), MediaError (a file), ContextError (a budget below what is stated), Stopped.
        """
        return self._prepared(
            messages, None, tools=tools, enable_thinking=enable_thinking, add_vision_id=add_vision_id,
            continue_final_message=continue_final_message, budget=budget, dedupe=dedupe, max_new_tokens=max_new_tokens,
            progress=progress, stop=stop,
        )  # fmt: skip

    def _prepared(self, messages: Messages, holder: Any, *, budget: int | None, dedupe: bool, max_new_tokens: int | None,
                  stop: Stop | None, **layout: Any) -> Prompt:  # fmt: skip
        """The Prompt of messages that follow what a session holds, or nothing."""
        self._check_open()
        budget = None if budget is None else whole("budget", budget, 1)
        answer = 256 if max_new_tokens is None else whole("max_new_tokens", max_new_tokens, 1, 2**63)
        past, progress, planning = holder and holder.past, layout.pop("progress", None), self._planning()
        with using(self._stop(stop)):
            room = self.room(holder.nbytes if past else 0)
            draft = prompt.draft(
                messages, self.tokenizer, self.config, after=(past, holder.tail) if past else None, **layout,
                **self.media_limits.given(),
            )  # fmt: skip
            draft.settle(progress, budget)
            built = draft.lay(budget, room, answer)
            worth = holder is not None and len(built.token_ids) >= WORTH_MEASURING
            foreseen = holder and holder.foreseen
            built.plan = planning.plan(draft, built, answer, room, measuring=worth, foreseen=foreseen)
            built.opened = draft.opening_seconds
            if not dedupe:
                return built
            began = time.perf_counter()
            few = prompt.deduped(built, progress)
            few.opened = draft.opening_seconds + time.perf_counter() - began
            few.plan = planning.without_repeats(built.plan, draft, built, few, foreseen)
            few.choices = list(few.plan.videos)
            return few

    def session(self, path: str | bytes | os.PathLike[str] | None = None) -> Session:
        """A Session: a conversation that keeps its cache. path: the session file that it continues, made by `save` if missing.

        Raises SessionFileError (the file is damaged, or of another model, cache kind or version), ContextError, and
        UsageError or DiskError where no file can be made.
        """
        self._check_open()
        if path is not None:
            return saving.opened(self, path)
        session = Session(self)
        with self._lock:
            self._sessions.add(session)
        return session

    def _planned(self, holder: Any, messages: Messages, /, **settings: Any) -> plan.Plan:
        """The Plan of messages that follow what a session holds, or nothing. holder: as of `_stream`; settings: those of `plan`."""
        self._check_open()
        given, past = arguments(Model.plan, settings), holder.past
        names = ("budget", "max_new_tokens", "max_wait", "memory", "dedupe", "stop")
        budget, answer, wait, memory, dedupe, stop = (given.pop(name) for name in names)
        layout = given | {"after": (past, holder.tail) if past else None} | self.media_limits.given()
        with using(self._stop(stop)):
            return self._planning().ask(
                prompt.draft(messages, self.tokenizer, self.config, **layout), budget,
                self.room(holder.nbytes if past else 0), answer, wait, memory, dedupe, holder.foreseen,
            )  # fmt: skip

    def plan(
        self, messages: Messages, *, budget: int | None = None, max_wait: float | None = None, memory: int | None = None,
        max_new_tokens: int | None = 256, tools: Sequence[Any] | None = None, enable_thinking: bool = False,
        add_vision_id: bool = False, continue_final_message: bool = False, dedupe: bool = False, stop: Stop | None = None,
    ) -> plan.Plan:  # fmt: skip
        """The Plan of messages: frames, tokens, memory and seconds, without computing the answer.

        budget: see `prepare`. max_wait: most seconds until the first token; memory: most bytes of the process. Videos whose
        number of frames is left open are thinned until both hold. Plan.fits and Plan.problem say whether it can be done,
        Plan.nearest which settings would fit, or take more frames. Of a file without an index, the times are estimated
        (`Choice.estimated`). dedupe: see `prepare`; it decodes the videos. The first plan of a model measures this machine
        for about a second. Raises UsageError, MediaError, ContextError (a budget below what is stated), Stopped.
        """
        return self._planned(
            self._pool, messages, budget=budget, max_wait=max_wait, memory=memory, max_new_tokens=max_new_tokens, tools=tools,
            enable_thinking=enable_thinking, add_vision_id=add_vision_id, continue_final_message=continue_final_message,
            dedupe=dedupe, stop=stop,
        )  # fmt: skip

    def _planning(self) -> Planner:
        """The Planner of this model."""
        network = self.network
        if self.planner is None:
            self.planner = Planner.of(network.source, self.config, self.kv, network.ops, network=network)
        self.planner.context = self.context
        return self.planner

    def runner(self, capacity: int | None = None, progress: Progress | None = None) -> Runner:
        """A new Runner with an empty cache of `capacity` tokens (None: as many as fit)."""
        return Runner(self.network, self.room() if capacity is None else capacity, self.kv, Meter(progress), self.store)

    def logits(self, prompt: Prompt, *, stop: Stop | None = None) -> np.ndarray:
        """float32 (T, vocab): the logits after every token of a Prompt. Raises ContextError, MediaError, Stopped."""
        return np.concatenate([logits for _, logits in self.each_logits(prompt, 256, stop=stop)])

    def each_logits(self, prompt: Prompt, rows: int = 64, progress: Progress | None = None, *,
                    stop: Stop | None = None) -> Work[tuple[int, np.ndarray]]:  # fmt: skip
        """Iterates over the same logits, for long prompts: (index of the first token, float32 (at most `rows`, vocab))."""
        self._check_context(prompt, 0)
        runner = self.runner(len(prompt.token_ids), progress)
        return self.begun(Work(runner.each_logits(prompt, whole("rows", rows, 1, 1 << 40)), self._stop(stop)))

    def encode_vision(self, prompt: Prompt, *, stop: Stop | None = None) -> tuple[np.ndarray, np.ndarray]:
        """float32 (merged (N, hidden), deepstack (K, N, hidden)) of a Prompt's images and videos in token order."""
        features = vision.together(self.network, prompt.media, Meter())
        work: Work[tuple[np.ndarray, np.ndarray]] = Work(features, self._stop(stop))
        with self.begun(work):
            return next(work)

    def chat(self, messages: Messages, **settings: Any) -> Reply:
        """The complete Reply to messages; takes the arguments of `stream`. A Stop cuts it short: see finish_reason."""
        try:
            stream = self.stream(messages, **settings)
        except Stopped as stopped:  # while files were opened
            return Reply.empty(stopped.reason)
        with stream:
            for _ in stream:
                pass
        return stream.reply

    def stream(
        self, messages: Messages, *, max_new_tokens: int | None = 256, temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
        repetition_penalty: float | None = None, seed: int | None = None,
        stop: str | Stop | Sequence[str | Stop] | None = None, enable_thinking: bool = False,
        tools: Sequence[Any] | None = None, add_vision_id: bool = False, continue_final_message: bool = False,
        budget: int | None = None, dedupe: bool = False, response_format: Any = None, tool_choice: Any = "auto",
        parallel_tool_calls: bool | None = True, thinking_budget: int | None = None, logprobs: int | None = None,
        progress: Progress | None = None,
    ) -> Stream:  # fmt: skip
        """A Stream of Deltas; its `.reply` is the Reply so far, and the complete one at the end.

        max_new_tokens None: until the context is full. Sampling settings that are None take the file's generation
        defaults; seed None is 0. temperature 0 is greedy. stop: a stop string (the text ends before it), a Stop, or a
        list of these. continue_final_message: the last message is the assistant's, and the answer continues it. budget,
        dedupe: see `prepare`. tools: signatures of functions, as JSON data: {"type": "function", "function": {"name": N,
        "description": D, "parameters": a JSON schema}}. The answer is a text, calls of them (`Reply.tool_calls`), or a
        text and then calls; their arguments match the schemas. tool_choice: "auto"; "none", a text alone; "required",
        calls alone; {"type": "function", "function": {"name": N}}, calls of that one alone; {"type": "allowed_tools",
        "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}, some of them, whose parameters, if given, are
        narrower here. parallel_tool_calls: whether there may be more than one. thinking_budget: tokens after which the
        program closes the thinking, so that the answer goes on. response_format: what the answer must match, from its
        start or from the end of its thinking: {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema":
        S}}, {"type": "regex", "pattern": P}, {"type": "choice", "choices": [...]}, {"type": "grammar", "grammar": a Lark
        grammar}, a JSON schema, or a class with `model_json_schema()`; an answer that max_new_tokens ends is incomplete
        (finish_reason "length"). logprobs: the number of alternatives, 0 to 20, that Reply.logprobs tells of each
        token; None for no Reply.logprobs. progress(stage, done, total): stages "scan", "dedupe", "decode", "vision", "prefill",
        "generate"; of the store "restore" and "store", in bytes. Raises Stopped only while it opens files.
        """
        settings = {name: value for name, value in locals().items() if name not in ("self", "messages")}
        return self._stream(self._pool, messages, **settings)

    def logprobs(
        self, messages: Messages, text: str, *, top: int = 0, tools: Sequence[Any] | None = None, enable_thinking: bool = False,
        add_vision_id: bool = False, continue_final_message: bool = False, budget: int | None = None, dedupe: bool = False,
        progress: Progress | None = None, stop: Stop | None = None,
    ) -> list[TokenLogprob]:  # fmt: skip
        """The log-probabilities of a text as the beginning of the answer to messages: an entry for each of its tokens.

        Their sum is the log-likelihood of the text. top: the number of alternatives, 0 to 20, in each entry: with 1, `top[0][0]`
        is the token that a greedy answer has there. Other arguments: see `stream`; what calls share is shared here, too.
        Raises UsageError, MediaError, ContextError, OutOfMemoryError, Stopped.
        """
        settings = {name: value for name, value in locals().items() if name not in ("self", "messages", "text", "top")}
        if not isinstance(text, str):
            raise UsageError(f"text is {shown(text)}; it must be a text, the beginning of the answer")
        ids = self.tokenizer.encode(prompt.plain_text("text", text))
        settings |= {"told": ids, "logprobs": whole("top", top, 0, MOST), "max_new_tokens": max(1, len(ids))}
        with self._stream(self._pool, messages, **settings) as stream:
            for _ in stream:
                pass
        reply = stream.reply
        if reply.finish_reason not in ("stop", "length"):
            raise Stopped.because(reply.finish_reason)
        return reply.logprobs

    def _stream(self, holder: Any, messages: Messages, /, **settings: Any) -> Stream:
        """The Stream of `stream`, over a cache of `holder`: the pool, or a call of a session (session.asking).

        settings: those of `stream`, and `told`, the token ids of an answer that is known.
        """
        began = time.perf_counter()
        self._check_open()
        given = arguments(Model.stream, settings, "told")
        given["tools"] = prompt.listed_tools(given["tools"])
        asked = Settings.of(given, self.config.generation, holder.tools or prompt.plain_tools(given["tools"]))
        stop = self._stop(holder.stop, *asked.stops)
        built = self._prepared(messages, holder, stop=stop, **given)
        room = self._check_context(built, 1, holder.nbytes if holder.past else 0, len(asked.told or ()))
        eos = self.config.tokens.eos
        meter, limit = Meter(given["progress"]), min(asked.most or room, room - len(built.token_ids))
        meter.warnings, self.remarks = self.remarks, []
        with using(stop):
            sampler = asked.sampler(self.grammars, built, given["enable_thinking"], min(eos), meter.logprobs)
        tokens = holder.answer(built, sampler, eos, limit, meter)

        planning = self._planning()

        def ended(reply: Reply | None, end: int | None) -> None:
            holder.ended(reply, end)
            whole = reply is not None and reply.finish_reason in ("stop", "length", "tool_calls")
            if reply is not None and whole and not meter.shared and asked.told is None:
                planning.record(built.plan, meter.seconds, meter.cached, len(reply.token_ids))

        return self.begun(
            Stream(
                built, tokens, self.tokenizer.stream(), asked.strings, stop, meter, ended, began=began,
                load_seconds=self.load_seconds, calls=asked.rules.calls is not None,
                most=len(built.token_ids) + limit, holder=holder, engine=self._engine,
            )
        )  # fmt: skip

    def _engine(self) -> Any:
        """The Engine that runs the answers of this thread, or None."""
        return self.engine if self.engine is not None and self.engine.serves() else None

    def _stop(self, *stops: Stop | None) -> Stop:
        """A Stop for one call, set by the caller's Stop, by this thread's, or by close()."""
        return within(self._closing, *stops)

    def begun(self, work: W) -> W:
        """Registers the work of a call, so that close() ends it."""
        with self._lock:
            self._works.add(work)
        return work

    def _check_open(self) -> None:
        if self._closing:
            raise UsageError("the model is closed: load it again")

    def _check_context(self, prompt: Prompt, extra: int, held: int = 0, told: int = 0) -> int:
        """The room for prompt and answer. Raises ContextError, OutOfMemoryError where the prompt and `extra` need more.

        told: tokens of an answer that is known, of which all must have room.
        """
        room, need, made = self.room(held), len(prompt.token_ids) + max(extra, told), prompt.plan
        if need <= room:
            return room
        if need > self.context:
            if made is None or not made.problem or told:
                raise ContextError(self._too_long(prompt, told))
            raise ContextError(f"{made.problem}: {self._planning().advice(made, self.context_stated)}")
        size = need * cache_bytes_per_token(self.config.text, self.kv)
        words = f"{need:,} tokens take {gigabytes(size)} of {self.kv} cache, and the memory that is free holds {room:,}"
        advice = self._planning().advice(made, False) if made and not told else shortening(prompt, told)
        raise OutOfMemoryError(f"{words}: {advice}")

    def _too_long(self, prompt: Prompt, told: int) -> str:
        """What is said of a prompt, and a text of `told` tokens after it, that the context does not hold."""
        longest, text = self.config.text.context_length, f", the text {told:,}" if told else ""
        wider = f"raise the context (up to {longest:,}), or " if self.context < longest else ""
        words = f"the prompt has {len(prompt.token_ids):,} tokens{text} and the context holds {self.context:,}"
        return f"{words}: {wider}{shortening(prompt, told)}"


def arguments(method: Any, settings: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """Settings with a method's defaults for those that are left out. Raises TypeError for what it and `more` do not have."""
    defaults = method.__kwdefaults__
    if unknown := settings.keys() - defaults.keys() - {*more}:
        raise TypeError(f"{method.__name__}() got an unexpected keyword argument {min(unknown)!r}")
    return defaults | settings


def shortening(prompt: Prompt, told: int) -> str:
    """What makes a prompt, and a text of `told` tokens after it, shorter."""
    frames = "use fewer or smaller frames (fps, max_frames, max_pixels)"
    return "shorten the text" if not prompt.media else f"shorten the text, or {frames}" if told else frames
