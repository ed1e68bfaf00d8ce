"""/v1/responses: OpenAI's newer form of the same requests, and its events."""

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ivlite.engine.reply import Reply
from ivlite.errors import shown
from ivlite.serve.answers import Answer, event, taken
from ivlite.serve.fields import CHAT, RESPONSES, WHOLE_EFFORTS, Field, a
from ivlite.serve.kept import Kept
from ivlite.serve.request import Request, checked
from ivlite.serve.service import Service
from ivlite.serve.wire import Json, Refused
from ivlite.serve.work import Portion

ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "parallel_tool_calls": True, "previous_response_id": None, "temperature": None,
    "tool_choice": "auto", "tools": [], "top_p": None, "metadata": {}, "text": {"format": {"type": "text"}},
    "reasoning": None, "store": True, "truncation": "disabled", "user": None,
}  # fmt: skip
LOGPROBS = "message.output_text.logprobs"


async def create(service: Service, http: HttpRequest) -> Response:
    asked, body = await taken(service, http, lambda body: translated(body, service.responses))
    return Responses(service, http, asked, body)


async def get(service: Service, http: HttpRequest) -> Response:
    return Json(service.responses.get(http.path_params["response"], "response_id")[0])


async def delete(service: Service, http: HttpRequest) -> Response:
    service.responses.drop(http.path_params["response"])
    return Json({"id": http.path_params["response"], "object": "response", "deleted": True})


ROUTES = (
    ("POST", "/v1/responses", create),
    ("GET", "/v1/responses/{response}", get),
    ("DELETE", "/v1/responses/{response}", delete),
)


# ------------------------------------------------------------------------------------------------ from the request


def translated(body: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """The body as a chat request. Raises Refused."""
    given = {name: value for name, field in RESPONSES.items() if (value := checked(name, field, body)) is not None}
    out = {name: value for name, value in given.items() if name in CHAT}
    out["max_tokens"] = given.get("max_output_tokens")
    out["messages"] = messages(given, kept)
    out["tools"] = [tool(item) for item in given.get("tools", ())] or None
    choice = given.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        out["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    wanted = inner(given, "text", "format", a("object"))
    if wanted is not None and wanted.get("type") == "json_schema":
        wanted = {"type": "json_schema", "json_schema": {"schema": wanted.get("schema")}}
    out["response_format"] = wanted
    effort = inner(given, "reasoning", "effort", a("string"))
    if effort is not None:
        out["enable_thinking"] = effort in WHOLE_EFFORTS
    out["logprobs"] = True if LOGPROBS in given.get("include", ()) else None
    return out


def inner(given: Mapping[str, Any], outer: str, name: str, field: Field) -> Any:
    """A field of a field. Raises Refused."""
    return checked(f"{outer}.{name}", field, {f"{outer}.{name}": given.get(outer, {}).get(name)})


def tool(item: Any) -> Any:
    """A function in the form of a chat request. Raises Refused for tools that OpenAI runs."""
    if not isinstance(item, dict) or item.get("type") != "function":
        raise Refused(400, "tools may only be functions", param="tools")
    if "function" in item:
        return item
    return {
        "type": "function",
        "function": {name: value for name, value in item.items() if name not in ("type", "strict")},
    }


def messages(body: Mapping[str, Any], kept: Kept) -> list[Any]:
    """The conversation: the one before, the instructions, the input. Raises Refused."""
    given = body.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Refused(400, "input must be a text or a list of at least one item", param="input")
    before = body.get("previous_response_id")
    past = [] if before is None else [m for m in kept.get(before, "previous_response_id")[1] if not is_system(m)]
    out = [*past]
    for item in given:
        add(out, item)
    instructions = body.get("instructions")
    if instructions is not None:
        out = [{"role": "system", "content": instructions}, *(m for m in out if not is_system(m))]
    return out


def is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def add(out: list[Any], item: Any) -> None:
    """Adds an item of the input to the messages. Raises Refused."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message":
        out.append({name: item[name] for name in ("role", "content") if name in item})
    elif kind == "function_call":
        call = {"id": item.get("call_id"), "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments")}}  # fmt: skip
        if not (out and isinstance(out[-1], dict) and out[-1].get("role") == "assistant"):
            out.append({"role": "assistant", "content": ""})
        out[-1] = out[-1] | {"tool_calls": [*out[-1].get("tool_calls", ()), call]}
    elif kind == "function_call_output":
        out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":  # which the model is not shown again
        raise Refused(400, f"an item of the input has the type {shown(kind)}, which is not taken", param="input")


# -------------------------------------------------------------------------------------------------- to the response


class Responses(Answer):
    """A response, or its events."""

    def __init__(self, service: Service, http: HttpRequest, asked: Request, body: Mapping[str, Any]) -> None:
        super().__init__(service, http, asked)
        self.body, self.messages = body, asked.messages  # which are kept beyond the answer
        self.release, asked.release = asked.release, lambda: None
        self.id = f"resp_{secrets.token_hex(16)}"
        self.output: list[dict[str, Any]] = []  # the items that are complete, and the one that grows
        self.number = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.release()

    def response(self, status: str, reply: Reply | None = None, error: Any = None) -> dict[str, Any]:
        used = None if reply is None else self.usage(reply)
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        echoed = {name: self.body.get(name, default) for name, default in ECHOED.items()}
        return echoed | {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": error,
            "incomplete_details": cut, "model": self.service.name, "output": self.output, "usage": used,
        }  # fmt: skip

    def usage(self, reply: Reply) -> dict[str, Any]:
        counted = self.counts(reply)
        return {
            "input_tokens": counted["prompt_tokens"], "input_tokens_details": counted["prompt_tokens_details"],
            "output_tokens": counted["completion_tokens"], "output_tokens_details": counted["completion_tokens_details"],
            "total_tokens": counted["total_tokens"], "ivlite": counted["ivlite"],
        }  # fmt: skip

    def whole(self, portions: list[Portion]) -> dict[str, Any]:
        for portion in portions:
            self.events(portion)
        return self._ended()[1]

    def _ended(self) -> tuple[str, dict[str, Any], list[bytes]]:
        """(status, response, the events of the last item)."""
        reply = self.work.reply
        assert reply is not None
        events = self._close()
        if not self.output:
            self.output.append(self._item("message"))
        status = "incomplete" if reply.finish_reason in ("length", "repetition") else "completed"
        self.output[-1]["status"] = status
        made = self.response(status, reply)
        if self.body.get("store") is not False:
            self.service.responses.keep(made, [*self.messages, *self._said(reply)])
        return status, made, events

    def _said(self, reply: Reply) -> list[Any]:
        """The answer as messages of the conversation."""
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.text}}
            for c in reply.tool_calls
        ]
        return [{"role": "assistant", "content": reply.text, **({"tool_calls": calls} if calls else {})}]

    # ---------------------------------------------------------------------------------------------------- its events

    def _event(self, kind: str, **more: Any) -> bytes:
        self.number += 1
        return event({"type": kind, "sequence_number": self.number - 1, **more}, kind)

    def first(self) -> list[bytes]:
        return [
            self._event(f"response.{kind}", response=self.response("in_progress"))
            for kind in ("created", "in_progress")
        ]

    def _item(self, kind: str) -> dict[str, Any]:
        name = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item: dict[str, Any] = {"id": f"{name}_{secrets.token_hex(12)}", "type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}],
            }
        if kind == "reasoning":
            item |= {"summary": [], "content": [{"type": "reasoning_text", "text": ""}]}
        return item

    def events(self, portion: Portion) -> list[bytes]:
        if portion.call:
            return self._call(portion.call)
        kind, name = ("reasoning", "reasoning_text") if portion.thinking else ("message", "output_text")
        out = []
        if not self.output or self.output[-1]["type"] != kind:
            out = [*self._close(), *self._begin(self._item(kind))]
        part = self.output[-1]["content"][0]
        part["text"] += portion.text
        more: dict[str, Any] = {}
        if kind == "message":
            more["logprobs"] = self.logprobs(portion.tokens) if self.asked.logprobs is not None else []
            part["logprobs"] += more["logprobs"]
        return [
            *out,
            self._event(f"response.{name}.delta", **self._place(), content_index=0, delta=portion.text, **more),
        ]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _begin(self, item: dict[str, Any]) -> list[bytes]:
        """Begins an item."""
        self.output.append(item)
        events = [self._event("response.output_item.added", output_index=len(self.output) - 1, item=item)]
        if "content" in item:
            events.append(
                self._event("response.content_part.added", **self._place(), content_index=0, part=item["content"][0])
            )
        return events

    def _close(self) -> list[bytes]:
        """Ends the item that grows."""
        if not self.output or self.output[-1]["status"] != "in_progress":
            return []
        item = self.output[-1]
        item["status"] = "completed"
        if "content" in item:
            part, name = item["content"][0], item["content"][0]["type"]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            events = [
                self._event(f"response.{name}.done", **self._place(), content_index=0, text=part["text"], **more),
                self._event("response.content_part.done", **self._place(), content_index=0, part=part),
            ]
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            events = [self._event("response.function_call_arguments.done", **self._place(), **done)]
        return [*events, self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)]

    def _call(self, call: Any) -> list[bytes]:
        item = self._item("function_call") | {"call_id": call.id, "name": call.name, "arguments": ""}
        events = [*self._close(), *self._begin(item)]
        item["arguments"] = call.text
        delta = self._event("response.function_call_arguments.delta", **self._place(), delta=call.text)
        return [*events, delta, *self._close()]

    def last(self) -> list[bytes]:
        status, made, events = self._ended()
        return [*events, self._event(f"response.{status}", response=made)]

    def failed(self, refused: Refused) -> list[bytes]:
        error = {"code": refused.code or "server_error", "message": refused.message}
        return [self._event("response.failed", response=self.response("failed", error=error))]
