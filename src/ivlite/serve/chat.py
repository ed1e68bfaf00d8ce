"""/v1/chat/completions."""

import secrets
from typing import Any

from ivlite.engine.reply import Reply
from ivlite.serve.answers import Answer, event
from ivlite.serve.work import Portion

DONE = b"data: [DONE]\n\n"
REASONS = {"repetition": "length"}  # an answer that repeats itself without end is cut off


def call_dict(call: Any) -> dict[str, Any]:
    """A ToolCall in OpenAI's form."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}


class Chat(Answer):
    """A chat completion, or its chunks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.calls = 0  # that were sent

    def _shell(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.service.name, **more}

    # ----------------------------------------------------------------------------------------------------- at once

    def whole(self, pieces: list[Portion]) -> dict[str, Any]:
        reply = self.work.reply
        assert reply is not None
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.thinking:
            message["reasoning_content"] = reply.thinking
        if calls := [call_dict(piece.call) for piece in pieces if piece.call]:
            message["tool_calls"] = calls
        content = (
            None if self.asked.logprobs is None else {"content": self.logprobs(len(reply.token_ids)), "refusal": None}
        )
        choice = {"index": 0, "message": message, "logprobs": content, "finish_reason": self._reason(reply)}
        return self._shell("chat.completion", choices=[choice], usage=self.counts(reply))

    def _reason(self, reply: Reply) -> str:
        return REASONS.get(reply.finish_reason, reply.finish_reason)

    # ---------------------------------------------------------------------------------------------------- streamed

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        more = {"usage": None} if self.asked.include_usage else {}
        return event(self._shell("chat.completion.chunk", choices=[choice], **more))

    def first(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def events(self, piece: Portion) -> list[bytes]:
        if piece.call:
            self.calls += 1
            return [self._chunk({"tool_calls": [{"index": self.calls - 1, **call_dict(piece.call)}]})]
        if piece.thinking:
            return [self._chunk({"reasoning_content": piece.text})]
        logprobs = None
        if self.asked.logprobs is not None:
            logprobs = {"content": self.logprobs(piece.tokens), "refusal": None}
        return [self._chunk({"content": piece.text}, logprobs=logprobs)]

    def last(self) -> list[bytes]:
        reply = self.work.reply
        assert reply is not None
        logprobs = None
        if self.asked.logprobs is not None and self.told < len(reply.token_ids):
            logprobs = {"content": self.logprobs(len(reply.token_ids)), "refusal": None}
        out = [self._chunk({}, self._reason(reply), logprobs)]
        if self.asked.include_usage:
            out.append(event(self._shell("chat.completion.chunk", choices=[], usage=self.counts(reply))))
        return [*out, DONE]
