"""Lines of a terminal with editing, history and completion (prompt_toolkit)."""

import asyncio
import os
import sys

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from ivlite.cli.chat.commands import ALIASES, COMMANDS, SETTINGS
from ivlite.cli.chat.entry import media_kind, plain, quoted, unfinished, words
from ivlite.cli.chat.history import history
from ivlite.cli.chat.lines import FIRST, HINT, MORE, hint
from ivlite.errors import Stopped
from ivlite.files import expanded
from ivlite.interrupt import turn

PATHS = {"video": media_kind, "image": media_kind, "save": None, "load": None}  # commands of a file, and which files


class Terminal:
    """read() gives one entry after the other, None at the end. Raises Stopped when the program is to end.

    remember: whether the lines are kept for later conversations.
    """

    interactive = True

    def __init__(self, remember=True):
        output = create_output(sys.__stdout__)
        output.enable_cpr = False  # asking where the cursor is needs an answer, which some terminals never give
        self.prompt = PromptSession(
            FIRST,
            multiline=True,
            prompt_continuation=MORE,
            placeholder=lambda: [] if get_app().is_done else [("fg:ansibrightblack", HINT)],
            history=history(remember),
            completer=Names(),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            key_bindings=keys(),
            enable_suspend=True,
            output=output,
        )

    def read(self):
        try:
            with turn() as stop:
                text = self.prompt.prompt(pre_run=lambda: watch(self.prompt.app, stop), handle_sigint=False)
        except (KeyboardInterrupt, Stopped):
            return hint(self.prompt.default_buffer.text)
        except (EOFError, OSError):  # Ctrl-D, a terminal that is gone
            return None
        return text


def watch(app, stop):
    """Ends the prompt of `app` when a signal sets the Stop."""

    async def watching():
        while not stop:
            await asyncio.sleep(0.1)
        if app.is_running and not app.future.done():
            app.exit(exception=Stopped.because(stop.reason))

    app.create_background_task(watching())


def keys():
    """Enter sends a finished entry; Alt-Enter (or Escape, Enter) begins a new line in any."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event):
        buffer = event.current_buffer
        if unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event):
        event.current_buffer.insert_text("\n")

    return bindings


class Names(Completer):
    """Completes commands, names of settings, and file names after the commands that take one and wherever a folder is written."""

    def get_completions(self, document, complete_event):
        text = document.text_before_cursor
        command, space, rest = text[1:].partition(" ")
        if text.startswith("/") and not space:
            names = [name for name in (*COMMANDS, *ALIASES) if name.startswith(command)]
            takes = {name: COMMANDS[ALIASES.get(name, name)][0] for name in names}
            yield from (Completion(f"/{name} "[: None if takes[name] else -1], -len(text)) for name in names)
            if names:
                return
        if text.startswith("/set ") and " " not in rest.lstrip():
            begun = rest.lstrip()
            yield from (Completion(f"{name} ", -len(begun)) for name in SETTINGS if name.startswith(begun))
        elif text.startswith("/") and space and command in PATHS:
            yield from files(rest.lstrip(), PATHS[command])
        elif (found := words(text)) and found[-1].end == len(text) and "/" in found[-1].text:
            yield from files(found[-1].raw, media_kind)


def files(raw, kind):
    """Completions of a file name as it was written so far; kind(path): whether a file is wanted, None for all."""
    name = raw[1:] if raw[:1] in ("'", '"') else plain(raw)
    folder, _, begin = name.rpartition("/")
    folder += "/" if "/" in name else ""
    try:
        entries = sorted(os.scandir(expanded(folder) or "."), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        if (
            not entry.name.startswith(begin)
            or (entry.name.startswith(".") and not begin)
            or not entry.name.isprintable()
        ):
            continue
        inside = entry.is_dir()
        if not inside and kind and not kind(entry.path):
            continue
        whole = folder + entry.name + ("/" if inside else "")
        if raw[:1] in ("'", '"'):
            yield Completion(raw[0] + whole + ("" if inside else raw[0]), -len(raw))
        else:
            yield Completion(quoted(whole), -len(raw))
