"""The commands of `ivlite chat`. Each is a function of the Conversation and of what follows the command's name."""

import difflib
import os

from ivlite.cli import answer, arguments
from ivlite.cli.chat.entry import FENCE, leading_file, only_file, parts, proper
from ivlite.errors import UsageError, shown
from ivlite.machine import gigabytes, peak_memory


def command(text):
    """(name, rest) of a command, None for a question. Raises UsageError for an unknown command."""
    if not text.startswith("/"):
        return None
    name, _, rest = text[1:].partition(" ")
    name = ALIASES.get(name.strip(), name.strip())
    if name in COMMANDS:
        return name, rest.strip()
    near = difflib.get_close_matches(name.lower(), [*COMMANDS, *ALIASES], 1, 0.5)
    advice = (
        f"did you mean /{near[0]}?" if near else "/help lists them, and a space before the slash makes it a question"
    )
    raise UsageError(f"there is no command {shown('/' + name, 40)}: {advice}")


def check_rest(name, rest):
    """Raises UsageError for words after a command that takes none: they would be passed over."""
    if rest and not COMMANDS[name][0]:
        raise UsageError(f"/{name} takes nothing after it, not {shown(rest, 40)}: write /{name}")


def known(text):
    """Whether a text begins with the name of a command."""
    try:
        return command(text) is not None
    except UsageError:
        return False


def usage(name):
    """How a command is written: "/video FILE [START [END [FPS]]]"."""
    return f"/{name} {COMMANDS[name][0]}".rstrip()


def brief(path):
    """A path for a sentence: without the working folder, where it is in that."""
    try:
        short = os.path.relpath(path)
    except OSError:  # the working folder is gone
        return path
    return path if short.startswith("..") else short


def parsed(kind, name, text):
    """The value of a setting; kind: an argparse type. Raises UsageError."""
    try:
        return kind(text)
    except arguments.argparse.ArgumentTypeError as error:
        raise UsageError(f"{name}: {error}") from None


# ------------------------------------------------------------------------------------------------ media


RANGE = {"start": arguments.moment, "end": arguments.moment, "fps": arguments.SHARED["--fps"]["type"]}


def video(chat, rest):
    path, more = leading_file(rest)
    if not path or len(more) > len(RANGE):
        raise UsageError(f"write {usage('video')}, times in seconds or as HH:MM:SS")
    given = {name: parsed(kind, name, text) for (name, kind), text in zip(RANGE.items(), more, strict=False)}
    if "end" in given and given["end"] <= given["start"]:
        raise UsageError(f"the end ({more[1]}) must come after the start ({more[0]})")
    chat.add("video", path, **given)


def image(chat, rest):
    if not rest:
        raise UsageError(f"write {usage('image')}")
    chat.add("image", only_file(rest))


def plan(chat, rest):
    from ivlite.cli.plan import check, lines
    from ivlite.evaluate.dataset import ASK

    messages = chat.question(proper(rest) or ASK["text"])
    settings = {
        name: chat.settings[name] for name in ("budget", "max_new_tokens", "enable_thinking", "tools", "dedupe")
    }
    with arguments.called(messages):
        made = chat.session.plan(messages, **settings)
    chat.tell("\n".join(lines(made)))
    check(made, chat.model.planner, chat.model.context_stated)


# ------------------------------------------------------------------------------------------------ steps back


def undo(chat, rest):
    if chat.pending:
        part = chat.pending.pop()
        chat.tell(f"taken back: {part['type']} {part[part['type']]}")
    else:
        messages = [message for message in chat.take_back() if message["role"] != "system"]
        chat.pending = parts(messages, "video", "image")
        text = " ".join(part["text"] for part in parts(messages, "text"))
        chat.tell(f"taken back: {shown(text)}" + "; its media are for the next question" * bool(chat.pending))
        chat.keep()


def regen(chat, rest):
    chat.again(parsed(arguments.SEED, "seed", rest) if rest else (chat.seed + 1) % (arguments.MOST_SEED + 1))
    if chat.reply and chat.temperature == 0:
        chat.tell("the temperature is 0, so every seed gives this answer; /set temperature 0.7 draws another one")


def clear(chat, rest):
    while chat.session.messages:
        chat.take_back()
    chat.pending, chat.reply = [], None
    chat.keep()
    chat.tell("the conversation begins anew")


# ------------------------------------------------------------------------------------------------ files


def save(chat, rest):
    path = only_file(rest)
    if not path and not chat.session.path:
        raise UsageError("name a file: /save talk.ivs")
    chat.save(path or None)
    chat.tell(f"{path or brief(chat.session.path)}: {size(chat)}")


def load(chat, rest):
    path = only_file(rest)
    if not path:
        raise UsageError(f"write {usage('load')}")
    chat.load(path)
    chat.tell(f"{path}: {size(chat)}" + ", kept there from now on" * chat.kept)


def size(chat):
    """How long the conversation is."""
    count = chat.questions
    return f"{count} question{'s' * (count != 1)}, {chat.session.tokens:,} tokens"


# ------------------------------------------------------------------------------------------------ settings and figures


def switch(text):
    """An argparse type: "on" or "off"."""
    if text not in ("on", "off"):
        raise arguments.argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return text == "on"


# name -> (argparse type, setting of Model.stream)
SETTINGS = {flag[2:]: (kind, flag[2:].replace("-", "_")) for flag, kind, *_ in arguments.ANSWER} | {
    "seed": (arguments.SEED, "seed"),
    "max-new-tokens": (arguments.whole(1), "max_new_tokens"),
    "budget": (arguments.SHARED["--budget"]["type"], "budget"),
    "think": (switch, "enable_thinking"),
    "thinking-budget": (arguments.whole(0), "thinking_budget"),
}


def change(chat, rest):
    name, _, value = rest.partition(" ")
    if name and name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1, 0.5)
        raise UsageError(
            f"there is no setting {shown(name, 40)}: " + (f"did you mean {near[0]}?" if near else "/set lists them")
        )
    if name and value.strip():
        kind, key = SETTINGS[name]
        chat.settings[key] = parsed(kind, name, value.strip())
    chat.tell("\n".join(f"  {one} {setting(chat, one)}" for one in ([name] if name else SETTINGS)))


def setting(chat, name):
    """The value of a setting, as /set takes it."""
    key = SETTINGS[name][1]
    value = chat.settings[key]
    if value is None:
        own = getattr(chat.model.config.generation, key, None)
        return "as by default" if own is None else f"{own} (the model file's)"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def stats(chat, rest):
    session, model = chat.session, chat.model
    rows = {
        "tokens": f"{session.tokens:,}" + (f" of {model.context:,}" if model.context else ""),
        "questions": chat.questions,
        "model": f"{model.config.name}, {gigabytes(model.nbytes)} of weights, {model.threads} threads, {model.kv} cache",
        "memory": f"{gigabytes(peak_memory())} at most",
    }
    if session.path:
        rows["file"] = brief(session.path) + ", not saved yet" * chat.changed
    chat.tell("\n".join(f"  {name:10}{value}" for name, value in rows.items()))
    if chat.reply:
        chat.tell(answer.closing_line(chat.reply, False, chat.model.device))


# ------------------------------------------------------------------------------------------------ others


def show_help(chat, rest):
    rows = [(usage(name), text) for name, (_, text, _) in COMMANDS.items()] + list(KEYS)
    width = max(len(name) for name, _ in rows)
    chat.tell("\n".join(f"  {name:{width}}  {text}" for name, text in rows))


def bye(chat, rest):
    chat.over = True


# name -> (its arguments, what it does, the function)
COMMANDS = {
    "video": ("FILE [START [END [FPS]]]", "a video for the next question; dragging a file in does the same", video),
    "image": ("FILE", "an image for the next question", image),
    "plan": ("[QUESTION]", "what the next question will cost, with its files", plan),
    "undo": ("", "take back the last step: a file that was added, or a question with its answer", undo),
    "regen": ("[SEED]", "answer the last question again, with the next seed or this one", regen),
    "clear": ("", "forget the conversation", clear),
    "save": ("[FILE]", "save the conversation as it is now, to go on with later", save),
    "load": ("FILE", "go on with a saved conversation", load),
    "set": ("[NAME VALUE]", "change a setting of the answers; show them", change),
    "stats": ("", "show the size of the conversation, and the figures of the last answer", stats),
    "help": ("", "show this", show_help),
    "bye": ("", "end, as /exit, /quit and Ctrl-D do", bye),
}
ALIASES = {"exit": "bye", "quit": "bye", "?": "help"}
KEYS = (
    ("\\ at the end, Alt-Enter", "go on in the next line"),
    (f"{FENCE} ... {FENCE}", "a text of several lines"),
    ("Ctrl-C", "stop the answer"),
)
