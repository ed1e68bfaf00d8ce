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


def usage(reply: Reply, thought: int) -> dict[str, Any]:
    """Counts in OpenAI's form. ivlite: stages in seconds, what was reused, what is worth knowing about the media."""
    used = reply.usage
    prompt, made = used["prompt_tokens"], used["new_tokens"]
    rest = ("vision_tokens", "frames", "stored_tokens", "draft_tokens", "accepted_tokens")
    return {
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": used["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": thought},
        "ivlite": {name: used[name] for name in rest} | {
            "seconds": {stage: round(seconds, 4) for stage, seconds in reply.timings.items() if stage != "load"},
            "finish_reason": reply.finish_reason, "warnings": reply.warnings,
        },
    }  # fmt: skip


class Chat(Answer):
    """A chat completion, or its chunks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.told = self.thought = self.calls = 0  # tokens whose logprobs were sent; tokens of thinking; calls sent

    def _shell(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.service.name, **more}

    # ----------------------------------------------------------------------------------------------------- at once

    def whole(self, pieces: list[Portion]) -> dict[str, Any]:
        reply = self.work.reply
        assert reply is not None
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        for piece in pieces:
            self._thinking(piece)
        if reply.thinking:
            message["reasoning_content"] = reply.thinking
        if calls := [call_dict(piece.call) for piece in pieces if piece.call]:
            message["tool_calls"] = calls
        content = (
            None if self.asked.logprobs is None else {"content": self._logprobs(len(reply.token_ids)), "refusal": None}
        )
        choice = {"index": 0, "message": message, "logprobs": content, "finish_reason": self._reason(reply)}
        return self._shell("chat.completion", choices=[choice], usage=usage(reply, self.thought))

    def _reason(self, reply: Reply) -> str:
        return REASONS.get(reply.finish_reason, reply.finish_reason)

    def _thinking(self, piece: Portion) -> None:
        if piece.thinking:
            self.thought = self.told = max(self.told, piece.tokens)

    def _logprobs(self, upto: int) -> list[dict[str, Any]]:
        """The entries of the tokens that were not sent yet, up to number `upto`."""
        assert self.work.stream is not None
        found = self.work.stream.reply.logprobs[self.told : upto]
        self.told = max(self.told, upto)
        return [
            self._token(entry.token, entry.logprob) | {"top_logprobs": [self._token(*other) for other in entry.top]}
            for entry in found
        ]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.service.model.tokenizer.bytes_of(token, skip_special=False)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}

    # ---------------------------------------------------------------------------------------------------- streamed

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        more = {"usage": None} if self.asked.include_usage else {}
        return event(self._shell("chat.completion.chunk", choices=[choice], **more))

    def first(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def events(self, piece: Portion) -> list[bytes]:
        self._thinking(piece)
        if piece.call:
            self.calls += 1
            return [self._chunk({"tool_calls": [{"index": self.calls - 1, **call_dict(piece.call)}]})]
        if piece.thinking:
            return [self._chunk({"reasoning_content": piece.text})]
        logprobs = None
        if self.asked.logprobs is not None:
            logprobs = {"content": self._logprobs(piece.tokens), "refusal": None}
        return [self._chunk({"content": piece.text}, logprobs=logprobs)]

    def last(self) -> list[bytes]:
        reply = self.work.reply
        assert reply is not None
        logprobs = None
        if self.asked.logprobs is not None and self.told < len(reply.token_ids):
            logprobs = {"content": self._logprobs(len(reply.token_ids)), "refusal": None}
        out = [self._chunk({}, self._reason(reply), logprobs)]
        if self.asked.include_usage:
            out.append(event(self._shell("chat.completion.chunk", choices=[], usage=usage(reply, self.thought))))
        return [*out, DONE]
