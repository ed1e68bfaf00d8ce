"""The one conversation of an agent: it only grows. Where it nearly fills the context, old looks give way to their texts."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ivlite.agent import say
from ivlite.agent.apart import finished
from ivlite.agent.case import Case
from ivlite.errors import ContextError, IvliteError, UsageError
from ivlite.stop import using

FULL = 0.8  # share of the room from which old looks are folded
KEPT = 0.5  # share that the conversation has after that
RECENT = 2  # messages with frames that are never folded
USUAL = 512  # tokens of a reply
MARGIN = 64  # tokens by which `weight` may be off
Message = dict[str, Any]


class Context:
    """A Session, and what was said in it, with videos by their handles so that it can be said again.

    signatures: of the tools. remark(sentence): says what was done.
    """

    def __init__(self, case: Case, signatures: Sequence[Mapping[str, Any]], remark: Callable[[str], object]) -> None:
        self.case, self.signatures, self.remark = case, list(signatures), remark
        self.session = case.model.session()
        self.messages: list[Message] = []  # said, answers included
        self.waiting: list[Message] = []  # to be said with the next question
        self._folded: list[str] = []  # looks that are left out with the next reply
        self._rest = 0  # tokens of the conversation that `weight` does not count
        self._anew = False  # the session has lost what was said
        self._known: list[tuple[list[Message], bool, dict[str, Any]]] = []  # answers that the session does not hold yet

    def close(self) -> None:
        self.session.close()

    def say(self, *messages: Message) -> None:
        """Adds messages that the next reply follows."""
        self.waiting += messages

    def remind(self, text: str) -> None:
        """Adds a text of the user behind results of tools; nothing behind what the user said."""
        if self.waiting and self.waiting[-1]["role"] == "tool":
            self.say({"role": "user", "content": text})

    # -------------------------------------------------------------------------------------------- replies

    def ready(self) -> int:
        """Makes room, and returns how many tokens the next reply may have.

        The session takes in the replies of an earlier process; where what is waiting would nearly fill the room, old looks are
        folded.
        """
        self.catch_up()
        if not self._folded and self.size() + USUAL > FULL * self.room():
            self._folded = self.fold()
        return self.room() - self.size() - MARGIN

    def ask(self, limit: int, **settings: Any) -> dict[str, Any]:
        """The reply to what is waiting, as plain data that `told` takes.

        Raises Stopped, ContextError and media errors; the conversation is then as it was.
        """
        try:
            reply = self._reply(self._new(bool(self._folded)), bool(self._folded), limit, settings)
        except ContextError:
            if self._folded or not (ids := self.fold()):
                raise
            self._folded = ids
            reply = self._reply(self._new(True), True, limit, settings)
        data = data_of(reply, limit, self._folded) | {"thinks": bool(settings.get("enable_thinking"))}
        self._folded = []
        self._answered(assistant(data))
        return data

    def told(self, data: Mapping[str, Any]) -> None:
        """Adds a reply of an earlier process: plain data of `data_of`. The session takes it in when it must answer."""
        if data["folded"]:
            self.leave_out(data["folded"])
            self._known.clear()  # a conversation that begins anew
        how = {"told": data["ids"], "max_new_tokens": data["limit"], "enable_thinking": data["thinks"]}
        self._known.append((self._new(bool(data["folded"])), bool(data["folded"]), how))
        self._answered(assistant(data))

    def _new(self, folded: bool) -> list[Message]:
        return [*self.messages, *self.waiting] if folded else list(self.waiting)

    def _answered(self, answer: Message) -> None:
        self.messages += [*self.waiting, answer]
        self.waiting = []

    def _reply(self, messages: Sequence[Message], whole: bool, limit: int, settings: dict[str, Any]) -> Any:
        mark = self.session.mark()
        try:
            return finished(self._stream(messages, whole, max_new_tokens=limit, **settings), self.case)
        except ContextError:
            raise
        except IvliteError:
            self._back(mark)
            raise

    def _back(self, mark: Any) -> None:
        """Forgets what was begun since a mark; where it had replaced what was before, begins anew with the next question."""
        with using(None):  # the Stop may be set
            try:
                self.session.rollback(mark)
            except UsageError:
                self.session.close()
                self.session = self.case.model.session()
                self._anew = True

    def _stream(self, messages: Sequence[Message], whole: bool, **settings: Any) -> Any:
        if self._anew and not whole:
            messages, whole = self._new(True), True
        given, self._anew = [self._resolved(message) for message in messages], False
        if whole or not self.session.tokens:
            return self.session.stream(given, tools=self.signatures, **settings)
        return self.session.ask(given, **settings)

    def catch_up(self) -> None:
        """Makes the session hold the replies of an earlier process."""
        while self._known:
            messages, whole, how = self._known[0]
            with self._stream(messages, whole, **how) as stream:
                for _ in stream:
                    pass
            self._known.pop(0)

    def _resolved(self, message: Message) -> Message:
        if not isinstance(message.get("content"), list):
            return message
        return message | {"content": self.case.resolved(message["content"])}

    # -------------------------------------------------------------------------------------------- room

    def room(self) -> int:
        """The most tokens of the conversation."""
        return min(int(self.session.capacity), int(self.case.model.room(self.session.nbytes)))

    def size(self) -> int:
        """Tokens of the conversation with what is waiting, roughly."""
        if self._folded:
            return self._rest + self.weight([*self.messages, *self.waiting])
        return int(self.session.tokens) + self.weight(self.waiting)

    def weight(self, messages: Sequence[Message]) -> int:
        """Tokens of messages, roughly: of their frames, and a third of the characters."""
        tokens = 0
        for message in messages:
            content = message.get("content") or ""
            for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
                tokens += len(part["text"]) // 3 if part["type"] == "text" else self._frames(part)
            tokens += sum(len(str(call)) // 3 for call in message.get("tool_calls", ()))
        return tokens

    def _frames(self, part: Mapping[str, Any]) -> int:
        film = self.case.films[part["video"]]
        temporal, pixels = film.config.vision.temporal_patch_size, part["max_pixels"] / film.config.video.max_pixels
        return -(-int(part.get("nframes", 1)) // temporal) * film.pair_tokens(pixels)

    def fold(self) -> list[str]:
        """Leaves out the frames of the oldest looks until half of the room is free; their texts stay. Returns their ids.

        The overview goes last.
        """
        weight, ids = self.weight(self.messages), list[str]()
        self._rest = max(0, int(self.session.tokens) - weight)
        overview, *looks = [message for message in self.messages if has_frames(message)] or [{}]
        for message in [*looks[: max(0, len(looks) - RECENT)], overview]:
            if self._rest + weight <= KEPT * self.room() or not message:
                break
            less, mine = folded(message)
            weight += self.weight([less]) - self.weight([message])
            ids += mine
        return self.leave_out(ids)

    def leave_out(self, ids: Sequence[str]) -> list[str]:
        """Leaves out the frames of these looks."""
        out = list(ids)
        for n, message in enumerate(self.messages):
            if has_frames(message):
                less, mine = folded(message)
                self.messages[n] = less if set(mine) & set(out) else message
        self.case.hides(out)
        if out:
            self.remark(f"the context is nearly full: the frames of {', '.join(out)} give way to what was said of them")
        return out


def hidden(messages: Sequence[Message]) -> list[str]:
    """The ids of evidence whose frames the messages show."""
    return [id for message in messages if has_frames(message) for id in folded(message)[1]]


def has_frames(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part["type"] != "text" for part in content)


def folded(message: Message) -> tuple[Message, list[str]]:
    """A message without its frames, and the ids of evidence that they were of."""
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    ids = [id for text in texts for id in say.ids_in(text)]
    return message | {"content": "".join(texts)}, ids


def assistant(data: Mapping[str, Any]) -> Message:
    """The message of a reply's plain data."""
    return {"role": "assistant", "content": data["text"], "tool_calls": [
        {"type": "function", "function": {"name": call["name"], "arguments": call["text"]}} for call in data["calls"]
    ]}  # fmt: skip


def data_of(reply: Any, limit: int, folded: Sequence[str]) -> dict[str, Any]:
    """A reply as plain data."""
    return {
        "ids": [int(i) for i in reply.token_ids], "limit": limit, "folded": list(folded), "text": reply.text,
        "thinking": reply.thinking, "finish_reason": reply.finish_reason,
        "calls": [{"name": c.name, "arguments": finite(c.arguments), "text": c.text} for c in reply.tool_calls],
    }  # fmt: skip


def finite(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments in which numbers that JSON has not are null."""
    found: dict[str, Any] = json.loads(json.dumps(arguments), parse_constant=lambda name: None)
    return found
