"""One input in, one line out: the answer of a model or its agent, or why there is none.

A line has the same bytes on every machine that computes alike, whatever is answered beside it and before: each input is a conversation
of its own that begins with nothing, and what depends on the moment (seconds, what was reused) is left out.
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ivlite.agent.agent import Agent
from ivlite.agent.answer import Answer
from ivlite.agent.budget import Budget
from ivlite.batch import batch_api
from ivlite.batch.resume import SPLIT
from ivlite.batch.task import Task, replaced
from ivlite.engine.batch import Engine
from ivlite.errors import DeviceError, IvliteError, ModelFileError, OutOfMemoryError, Stopped, sentence
from ivlite.gguf import GGUFFile
from ivlite.library import Library
from ivlite.loading import load
from ivlite.media.apart import Apart, Decoders
from ivlite.media.source import is_base64, local_path
from ivlite.stop import checkpoint

ENDS = (
    "stop",
    "length",
    "repetition",
    "tool_calls",
    "finish",
    "budget",
    "stalled",
    "repairs",
)  # of answers that nobody stopped
COUNTED = ("prompt_tokens", "vision_tokens", "new_tokens", "frames")
COUNTED_BY_AGENT = ("rounds", "calls", "frames", "new_tokens", "prompt_tokens", "apart")
FATAL = (ModelFileError, DeviceError)  # every other input would fail, too
PATIENCE = 300.0  # seconds without a word after which a decoder hangs: nobody waits at night
LOOK = 0.05


@dataclasses.dataclass(frozen=True)
class Line:
    """An answer as a line of JSON. error: {"class", "exit_code", "message"} of a failure, or None. tokens: of the prompt, and new ones."""

    data: bytes
    error: dict[str, Any] | None = None
    tokens: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Machine:
    """How a model is loaded. settings: arguments of `ivlite.load`, of them path. parallel: answers at once; None: as an Engine has it."""

    settings: Mapping[str, Any]
    parallel: int | None = None

    def identity(self) -> str:
        """Tells models apart: the file's contents, and what else changes answers. Raises ModelFileError."""
        with GGUFFile(self.settings["path"]) as file:
            digest = file.digest
        return " ".join([digest, *(str(self.settings.get(name)) for name in ("kv", "vit", "context"))])

    @contextmanager
    def opened(self, told: Callable[[str], object], progress: Any = None) -> Iterator["Answerer"]:
        """Loads the model, and answers. told: gets sentences about the machine, such as a card that is not used."""
        most = {} if self.parallel is None else {"most": self.parallel}
        with load(**self.settings, store=False, progress=progress) as model:
            for sentence in model.remarks:
                told(sentence)
            model.remarks = []
            model.settle_room()
            with Engine(model, **most) as engine, Answerer(engine, self.identity()) as answerer:
                yield answerer


class Answerer:
    """Answers Tasks with an Engine, any number at once, each in the thread that calls `line`. digest: of the model.

    A context manager that ends the processes that decode.
    """

    def __init__(self, engine: Engine, digest: str) -> None:
        self.engine, self.model, self.digest = engine, engine.model, digest
        self.decoders = Decoders(patience=PATIENCE)
        row = max(
            1, self.model.context * self.model.token_nbytes
        )  # an agent's conversation may grow to the whole context
        fit = engine.most if engine.memory is None else max(1, min(engine.most, engine.memory // row))
        self.agents = threading.Semaphore(fit)

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(self, *_: object) -> None:
        self.decoders.close()

    def line(self, task: Task) -> Line:
        """The line of a task. Raises Stopped, and what would fail for every other one (ModelFileError, DeviceError)."""
        content = task.content()
        try:
            told = self._by_agent(task) if task.agent is not None else self._answered(task)
            return made(task, f"{task.asked(self.digest)}{SPLIT}{content}", told, None)
        except (Stopped, *FATAL):
            raise
        except Exception as error:
            checkpoint()  # what fails while all is stopped may fail for that
            return failed(task, f"{task.asked(self.digest)}{SPLIT}{content}", error)

    def _answered(self, task: Task) -> dict[str, Any]:
        messages = [self._opened(message, task) for message in task.messages]
        with (
            self.model.session() as session
        ):  # not the caches of other calls: rows that are reused may differ in their last bits
            session.keeps = False
            with self.engine.stream(messages, session=session, **task.settings) as stream:
                for _ in stream:
                    pass
            reply = stream.reply
            finished(reply.finish_reason)
            calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.tool_calls]
            return {
                "text": reply.text, "thinking": reply.thinking, "tool_calls": calls, "finish_reason": reply.finish_reason,
                "usage": {name: int(reply.usage[name]) for name in COUNTED}, "warnings": reply.warnings,
            }  # fmt: skip

    def _opened(self, message: dict[str, Any], task: Task) -> dict[str, Any]:
        """A message whose files other processes decode: one that a decoder dies of fails alone. Raises MediaError."""
        if not isinstance(message.get("content"), list):
            return message
        return message | {"content": [self._part(part, task) for part in message["content"]]}

    def _part(self, part: dict[str, Any], task: Task) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        return replaced(
            part,
            lambda source: (
                source if is_base64(source) else Apart(located(task, part["type"], source), source, self.decoders)
            ),
        )

    def _by_agent(self, task: Task) -> dict[str, Any]:
        films = [located(task, "video", source) for source in task.paths()]
        (question,) = [part["text"] for part in task.messages[-1]["content"] if part["type"] == "text"]
        budget = Budget(**(task.agent or {}))
        with self._agent_turn(), ExitStack() as stack:
            library = stack.enter_context(Library.in_memory())  # texts of the videos, and nothing of other runs
            agent = stack.enter_context(Agent(self.model, films, library=library, budget=budget, **task.settings))
            answer = agent.ask(question)
        finished(answer.finish_reason)
        return by_agent(answer, {path: source for source, path in task.paths().items()})

    @contextmanager
    def _agent_turn(self) -> Iterator[None]:
        while not self.agents.acquire(timeout=LOOK):
            checkpoint()
        try:
            yield
        finally:
            self.agents.release()


def located(task: Task, kind: str, source: str) -> str:
    """The path of a file, which messages call as the input does. Raises MediaError."""
    path = task.path(source)
    try:
        return local_path(path, kind)[0]
    except IvliteError as error:
        raise type(error)(str(error).replace(path, source)) from None


def finished(reason: str) -> None:
    """Raises Stopped for an answer that was stopped."""
    if reason not in ENDS:
        raise Stopped.because(reason)


def by_agent(answer: Answer, named: dict[str, str]) -> dict[str, Any]:
    """An Answer as part of a line, without its steps. named: what the input calls a file, by its path."""
    data = answer.as_dict()
    videos = [video | {"path": named.get(video["path"], video["path"])} for video in data["videos"]]
    kept = ("claims", "evidence", "confidence", "looked_at", "missing")
    usage = {name: int(data["usage"][name]) for name in COUNTED_BY_AGENT}
    remarks = [step["text"] for step in data["steps"] if step["type"] == "remark"]
    return {"text": answer.text, **{name: data[name] for name in kept}, "videos": videos, "finish_reason": answer.finish_reason,
            "usage": usage, "warnings": remarks}  # fmt: skip


def failed(task: Task, mark: str, error: Exception) -> Line:
    """The line of a failure: its class and one sentence."""
    if isinstance(error, IvliteError):
        message = str(error)
        for source, path in task.paths().items():
            message = message.replace(path, source)
        told = {"class": type(error).__name__, "exit_code": error.exit_code, "message": message}
    elif isinstance(error, MemoryError):
        told = {"class": "OutOfMemoryError", "exit_code": OutOfMemoryError.exit_code, "message": "memory ran out"}
    else:
        name = type(error).__name__
        told = {
            "class": name,
            "exit_code": 1,
            "message": f"this is a defect of ivlite ({name}: {sentence(error, 300)}); report it",
        }
    return made(task, mark, None, told)


def made(task: Task, mark: str, told: dict[str, Any] | None, error: dict[str, Any] | None) -> Line:
    if task.batch_api:
        record = batch_api.line(task, mark, told, error)
    else:
        record = {"id": task.id, **task.shown, **(told or {"text": None}), "error": error, "task": mark}
    usage = (told or {}).get("usage", {})
    return Line(as_line(record), error, (usage.get("prompt_tokens", 0), usage.get("new_tokens", 0)))


def as_line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON in UTF-8; where a name is no text, with everything beyond ASCII escaped."""
    try:
        return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record, allow_nan=False) + "\n").encode()
