"""Tools of other programs (MCP servers), which the person names; by default there are none.

A server is not trusted: its tools are those that it had at the start, what they return is data of bounded length, and a tool
that changes, dies, hangs or sends what is no MCP is dropped. A tool that may change something is only called where the person
agrees.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self

from ivlite.agent import act
from ivlite.agent.act import Dropped, aside
from ivlite.agent.tools import BY_NAME, Tool
from ivlite.errors import UsageError, sentence
from ivlite.stop import checkpoint

STARTS = 30.0  # seconds until a server answers
MOST = 16  # tools of one server
DESCRIPTION = 400  # characters
SCHEMA = 8192  # characters of the arguments of a tool
TEXT, ITEMS = 400, 8  # characters of a text, and items of a list, where a schema does not say
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Server:
    """An MCP server in a process of its own; a context manager that ends it.

    command: a program with its arguments, as a shell reads it. confirm(sentence): asks the person, True to go on; None where
    nobody is there, and tools that may change something are then left out. remark(sentence): told of what is left out.
    tools: as `Agent` takes them. Raises UsageError (the package mcp is missing, the command, no answer in time), Stopped.
    """

    def __init__(self, command: str, *, confirm: Callable[[str], bool] | None = None,
                 remark: Callable[[str], object] = lambda sentence: None) -> None:  # fmt: skip
        self.command, self._confirm = command, confirm
        try:
            import mcp  # noqa: F401

            logging.getLogger("mcp").addHandler(logging.NullHandler())  # tracebacks of what servers send
        except ImportError:
            raise UsageError("tools of other programs need the package mcp: pip install 'ivlite[mcp]'") from None
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"the command of a server cannot be read ({error}): {sentence(command, 80)}") from None
        if not words:
            raise UsageError("the command of a server is empty")
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._client: Any = None
        self._over = threading.Event()
        self._failed = ""
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(words,), name="ivlite-mcp", daemon=True)
        self._thread.start()
        try:
            self._wait()
            self.tools = self._offered(remark)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server."""
        if self._task is not None and not self._over.is_set():
            with contextlib.suppress(RuntimeError):  # it ends just now
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(5)

    # -------------------------------------------------------------------------------------------- the connection

    def _run(self, words: list[str]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live(words))
        except BaseException as error:  # of the server's process, or of the package
            self._failed = sentence(error, 200) or type(error).__name__
        finally:
            self._over.set()
            self._started.set()
            self._loop.close()

    async def _live(self, words: list[str]) -> None:
        from mcp import Client, StdioServerParameters, stdio_client

        self._task = asyncio.current_task()
        with open(os.devnull, "w") as quiet:
            parameters = StdioServerParameters(command=words[0], args=words[1:])
            wait = 2 * act.WAITS  # ours ends first: one sentence for one fault, whichever clock is quicker
            async with Client(stdio_client(parameters, errlog=quiet), read_timeout_seconds=wait) as client:
                self._client = client
                self._started.set()
                await asyncio.Event().wait()  # until it is cancelled

    def _wait(self) -> None:
        left = STARTS
        while not self._started.wait(0.1):
            checkpoint()
            left -= 0.1
            if left <= 0:
                raise UsageError(f"the server {sentence(self.command, 80)} does not answer as an MCP server")
        if self._over.is_set():
            raise UsageError(
                f"the server {sentence(self.command, 80)} cannot be used: {self._failed or 'it has ended'}"
            )

    def _done(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a request. Raises Dropped, Stopped."""
        if self._over.is_set():
            work.close()
            raise Dropped("its server has ended")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return aside(lambda: future.result(act.WAITS), act.WAITS)
        except TimeoutError:
            raise Dropped(f"its server gave no answer within {act.WAITS:.0f} seconds") from None
        except Exception as error:  # of the package: a protocol error, a closed connection, or junk
            raise Dropped(f"its server failed ({type(error).__name__})") from None
        finally:
            future.cancel()

    # -------------------------------------------------------------------------------------------- tools

    def _listed(self) -> dict[str, tuple[str, Mapping[str, Any], bool]]:
        """{name: (description, schema, whether it only reads)} of the tools that the server has now. Raises Dropped."""
        found = self._done(self._client.list_tools(cache_mode="bypass"))
        out: dict[str, tuple[str, Mapping[str, Any], bool]] = {}
        for tool in found.tools:
            hints = tool.annotations
            out[tool.name] = (tool.description or "", dict(tool.input_schema), bool(hints and hints.read_only_hint))
        return out

    def _offered(self, remark: Callable[[str], object]) -> list[Tool]:
        """The tools of the server that can be used."""
        try:
            listed = self._listed()
        except Dropped as dropped:
            raise UsageError(f"the tools of {sentence(self.command, 80)} cannot be listed: {dropped}") from None
        out: list[Tool] = []
        for name, (description, schema, reads) in listed.items():
            wrong = unusable(name, schema) or (
                "" if reads or self._confirm else "it may change something, and nobody is there to agree"
            )
            if not wrong and len(out) == MOST:
                wrong = f"a server may have {MOST} tools"
            if wrong:
                remark(f"the tool {sentence(name, 40)} is left out: {wrong}")
                continue
            told = " ".join(sentence(description, DESCRIPTION).split())
            answer = self._caller(name, (description, schema, reads))
            out.append(
                Tool(
                    name,
                    told,
                    bounded(schema),
                    external=True,
                    answer=answer,
                    agree=None if reads else self._agree(name),
                )
            )
        return out

    def _agree(self, name: str) -> Callable[[dict[str, Any]], bool]:
        """Asks the person whether a tool may be called."""
        return lambda arguments: (
            self._confirm is not None and self._confirm(f"{name} {sentence(arguments, 300)}: call it?")
        )

    def _caller(self, name: str, known: tuple[str, Mapping[str, Any], bool]) -> Callable[[dict[str, Any]], Any]:
        def call(arguments: dict[str, Any]) -> Any:
            if self._listed().get(name) != known:
                raise Dropped("it is not what it was at the start")
            return content(self._done(self._client.call_tool(name, arguments)))

        return call


def unusable(name: str, schema: Mapping[str, Any]) -> str:
    """Why a tool cannot be used, or ""."""
    if not NAME.fullmatch(name):
        return "its name has other characters than letters, digits, _ and -"
    if name in BY_NAME:
        return "the agent has a tool of that name"
    return f"its arguments take more than {SCHEMA} characters" if len(str(schema)) > SCHEMA else ""


def bounded(schema: Any) -> Any:
    """A schema whose texts and lists have an end."""
    if isinstance(schema, list):
        return [bounded(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    out = {key: bounded(item) for key, item in schema.items()}
    if out.get("type") == "string" and not {"maxLength", "enum", "const", "pattern", "format"} & out.keys():
        out["maxLength"] = TEXT
    if out.get("type") == "array" and "maxItems" not in out:
        out["maxItems"] = max(ITEMS, out.get("minItems", 0) if isinstance(out.get("minItems"), int) else 0)
    return out


def content(result: Any) -> Any:
    """What a call returned, as text or JSON data; pictures and files are left out, and counted."""
    texts = [part.text for part in result.content if getattr(part, "type", "") == "text"]
    others = len(result.content) - len(texts)
    data: Any = "\n".join(texts) if texts else result.structured_content
    if result.is_error:
        return {"failed": data}
    return {"text": data, "left_out": others} if others else data if data is not None else ""
