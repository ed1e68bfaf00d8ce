"""The model `ivlite` of lmms-eval: `lmms-eval --model ivlite --model_args pretrained=MODEL,fps=2 --tasks ...`.

lmms-eval has two kinds of tasks. Those of chat models only generate, from messages. Multiple choice by likelihood is of the
other kind, for which `--force_simple` asks.
"""

import math
import mimetypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger

from ivlite.engine.batch import MOST, Engine, together
from ivlite.engine.reply import Reply
from ivlite.errors import ContextError, MediaError, UsageError
from ivlite.loading import load

Messages = list[dict[str, Any]]
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")  # names that both have
FAULTS = (MediaError, ContextError)  # of one document: the others go on


class Likelihood(tuple[float, bool], GenerationResult):
    """(minus the log-likelihood of a text, whether it is the greedy answer).

    lmms-eval compares losses: of several texts it takes the one whose number is the lowest. It makes a text of a result that
    is no GenerationResult.
    """

    def __new__(cls, loss: float, greedy: bool) -> "Likelihood":
        return super().__new__(cls, (loss, greedy))

    def __init__(self, loss: float, greedy: bool) -> None:
        GenerationResult.__init__(self, (loss, greedy))


class Chat(lmms):
    """pretrained: a model file, or "demo". fps, max_num_frames, min_pixels, max_pixels: of videos whose tasks set none.

    batch_size: answers that are generated together. max_new_tokens: where a task sets none. system_prompt: a text, or a file.
    others: arguments of `ivlite.load`, such as context, threads, kv. A document whose media cannot be used, or that is longer
    than the context, has an empty answer, and the log says why.
    """

    is_simple = False

    def __init__(
        self, pretrained: str, *, fps: float | None = None, max_num_frames: int | None = None, min_pixels: int | None = None,
        max_pixels: int | None = None, budget: int | None = None, enable_thinking: bool = False, system_prompt: str = "",
        max_new_tokens: int = 1024, batch_size: int | str = 1, max_batch_size: int | None = None, device: str | None = None,
        **others: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = load(
            str(pretrained), device or "auto", fps=fps, max_frames=max_num_frames, min_pixels=min_pixels, max_pixels=max_pixels,
            **others,
        )  # fmt: skip
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else max_batch_size or MOST  # "auto"
        self.max_new_tokens, self.system_prompt = max_new_tokens, self._resolve_system_prompt(system_prompt)
        self.prompt = {"budget": budget, "enable_thinking": enable_thinking}

    def clean(self) -> None:
        """Frees the caches: the harness may load another model now, as a judge."""
        self.model.caches.clear()
        super().clean()

    # -------------------------------------------------------------------------------------------- what the harness asks

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The answers to requests, in their order."""
        asked = ((self._messages(request), self._settings(self._generation(request))) for request in requests)
        return [result(reply) for reply in self._replies(asked)]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of each request's rounds: what a task asks next may depend on what was answered."""
        if self.is_simple:
            raise UsageError("tasks of several rounds are for chat models: leave out --force_simple")
        return [self._rounds(request) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Likelihood]:
        """The Likelihood of the text of each request, as the answer to its context and media."""
        return [self._likelihood(*request.args) for request in requests]

    # -------------------------------------------------------------------------------------------- how it is done

    def _generation(self, request: Any) -> dict[str, Any]:
        return dict(request.args[2] or {})

    def _messages(self, request: Any) -> Messages:
        _, doc_to_messages, _, *where = request.args
        return self._published(doc_to_messages(self._doc(*where)))

    def _published(self, given: Any) -> Messages:
        """Messages as the harness writes them, in the form that transformers takes and ivlite does."""
        messages = ChatMessages(messages=given).to_hf_messages()
        return self._apply_system_prompt(messages, self.system_prompt)

    def _doc(self, doc_id: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `Model.stream` from a task's generation_kwargs."""
        until = given.get("until") or []
        until = [until] if isinstance(until, str) else until
        settings = {name: given[name] for name in SAMPLING if given.get(name) is not None}
        if not given.get("do_sample", settings.get("temperature", 0) > 0):
            settings["temperature"] = 0
        most = given.get("max_new_tokens", given.get("max_gen_toks"))
        settings["max_new_tokens"] = self.max_new_tokens if most is None else int(most)
        # a blank line is what the harness puts where a task names no end; answers of a chat end by themselves
        return {**self.prompt, **settings, "stop": [text for text in until if text.strip()]}

    def _replies(self, asked: Iterator[tuple[Messages, dict[str, Any]]]) -> Iterator[Reply]:
        """The Replies to (messages, settings), some at a time."""
        with ExitStack() as held:
            if self.batch_size > 1:
                held.enter_context(Engine(self.model, most=self.batch_size))
            for group in grouped(asked, self.batch_size):
                streams = [attempted(self.model.stream, messages, **settings) for messages, settings in group]
                opened = [stream for stream in streams if stream is not None]
                attempted(lambda opened=opened: [None for _ in together(opened)])
                yield from (Reply() if stream is None else stream.reply for stream in streams)

    def _rounds(self, request: Any) -> list[str]:
        _, doc_to_messages, generation, *where = request.args
        doc, settings = self._doc(*where), self._settings(generation or {})
        texts: list[str] = []
        given, info = doc_to_messages(doc), None
        while given is not None:
            (reply,) = self._replies(iter([(self._published(given), settings)]))
            texts.append(reply.text)
            following = doc_to_messages(
                doc, round_idx=len(texts), previous_output=list(texts), previous_round_info=info
            )
            if not (isinstance(following, tuple) and len(following) == 4):  # a task of one round
                break
            given, terminal, _, info = following
            if terminal:
                break
        return texts

    def _likelihood(self, context: str, wanted: Any, doc_to_visual: Callable[[Any], Any] = lambda doc: None,
                    *where: Any) -> Likelihood:  # fmt: skip
        """wanted: a text, or a function of the document. A text alone, without a document, is for the likelihood in itself."""
        doc = self._doc(*where) if where else None
        text = wanted(doc) if callable(wanted) else wanted
        messages = self._apply_system_prompt(user(doc_to_visual(doc), context), self.system_prompt)
        # the blank before a text separates it from the context of a base model; here the answer's own turn does
        entries = attempted(self.model.logprobs, messages, str(text).lstrip(" "), top=1, **self.prompt)
        if entries is None:
            return Likelihood(math.inf, False)
        return Likelihood(-sum(e.logprob for e in entries), all(e.top[0][0] == e.token for e in entries))


class Simple(Chat):
    """The same for tasks that give a text and media apart: multiple choice by likelihood."""

    is_simple = True

    def _generation(self, request: Any) -> dict[str, Any]:
        return dict(request.args[1] or {})

    def _messages(self, request: Any) -> Messages:
        context, _, doc_to_visual, *where = request.args
        return self._apply_system_prompt(user(doc_to_visual(self._doc(*where)), context), self.system_prompt)


def user(visuals: Any, text: str) -> Messages:
    """The message of a question about media, as tasks name them: paths, pictures, lists of frames, parts of messages."""
    return [{"role": "user", "content": [*map(part, visuals or ()), {"type": "text", "text": text}]}]


def part(visual: Any) -> dict[str, Any]:
    if isinstance(visual, Mapping):
        return {"type": "video", **visual}
    if isinstance(visual, str):
        kind = (mimetypes.guess_type(visual)[0] or "").partition("/")[0]
        if kind == "audio":
            raise UsageError(f"{visual} is sound: ivlite takes text, images and videos")
        kind = "image" if kind == "image" else "video"
    else:
        kind = "video" if isinstance(visual, list | tuple) else "image"
    return {"type": kind, kind: visual}


def result(reply: Reply) -> GenerationResult:
    counts = TokenCounts(reply.usage.get("prompt_tokens"), len(reply.token_ids), reply.thought)
    return GenerationResult(reply.text, counts)


def attempted(work: Callable[..., Any], *given: Any, **settings: Any) -> Any:
    """What `work` returns, or None where a document's media or length is at fault."""
    try:
        return work(*given, **settings)
    except FAULTS as error:
        logger.error(f"no answer: {error}")
        return None


def grouped(items: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """Lists of `count` items; the last may be shorter."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group
