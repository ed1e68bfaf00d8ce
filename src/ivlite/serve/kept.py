"""Responses that the server remembers, so that a client can go on with one by its id."""

import threading
from collections import OrderedDict
from typing import Any

from ivlite.serve.wire import Refused, dumps

MOST, MOST_BYTES = 1000, 64 << 20  # responses, and their JSON


class Kept:
    """Responses and their conversations, for previous_response_id. Any thread may call any method."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[dict[str, Any], list[Any], int]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def keep(self, response: dict[str, Any], messages: list[Any]) -> None:
        size = len(dumps(response)) + len(dumps(messages))
        with self._lock:
            self._found[response["id"]] = response, messages, size
            self._bytes += size
            while self._bytes > MOST_BYTES or len(self._found) > MOST:
                self._bytes -= self._found.popitem(last=False)[1][2]

    def get(self, name: str, param: str) -> tuple[dict[str, Any], list[Any]]:
        """(response, messages) of an id. Raises Refused."""
        with self._lock:
            if name not in self._found:
                status = 404 if param == "response_id" else 400
                message = "there is no response of this id, or it is no longer kept: send the whole conversation"
                raise Refused(status, message, param=param, code="not_found")
            return self._found[name][:2]

    def drop(self, name: str) -> None:
        self.get(name, "response_id")
        with self._lock:
            if found := self._found.pop(name, None):
                self._bytes -= found[2]
