"""The conversation of `ivlite chat`: questions, answers, and where they are kept."""

import contextlib
import itertools
import os
import sys

from ivlite.cli import OutputError, answer, arguments, failed, printable, say
from ivlite.cli.chat.commands import COMMANDS, brief, check_rest, command, known
from ivlite.cli.chat.entry import dragged, finished, media_kind, parts, proper
from ivlite.errors import (
    ContextError,
    IvliteError,
    MediaError,
    OvertakenError,
    SessionFileError,
    Stopped,
    UsageError,
)
from ivlite.files import expanded
from ivlite.interrupt import turn, turns
from ivlite.media.source import is_base64, local_path
from ivlite.session.said import check_kept
from ivlite.stop import checkpoint, using

FINISHED = ("stop", "tool_calls", "length", "repetition")  # how answers end that nobody stopped
LONG = 1 << 16  # characters: a longer text was not typed, and holds no file that was dragged in


class Conversation:
    """Holds a conversation over a Session of `model`. interactive: a person sits at a terminal.

    pending: parts of the next question, its media. reply, seed: of the last answer. code: exit code of the last error.
    """

    def __init__(self, args, model, progress, interactive):
        self.args, self.model, self.progress, self.interactive = args, model, progress, interactive
        # One call at a time: the next line is what it returns.
        self.settings = arguments.answer_settings(args) | {"parallel_tool_calls": False}
        self.system = args.system
        self.pending = arguments.media_parts(args)
        self.reply, self.seed, self.code, self.over, self.changed = None, args.seed, 0, False, False
        self.loaded = True  # the time of loading is said once
        self.fault = None  # why the conversation could not be kept, the last time
        self.kept = args.session is not None  # whether every answer is saved
        self.session = self.opened(args.session)

    def opened(self, path):
        """The Session of a file, None for none. Raises UsageError where it contradicts --system, and what Model.session does."""
        session = self.model.session(path)
        first = session.messages[:1]
        if self.system and first and (first[0]["role"] != "system" or first[0]["content"] != self.system):
            session.close()
            raise UsageError(
                f"--system begins a conversation, and {brief(session.path)} has begun otherwise: leave it out"
            )
        return session

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.keep(said=self.fault)
        self.session.close()

    # -------------------------------------------------------------------------------------------- entries

    def hold(self, lines):
        """Answers entry after entry; returns the exit code."""
        if self.interactive and not self.args.quiet:
            self.greet()
        with turns() if self.interactive else contextlib.nullcontext():
            self.loop(lines)
        return 0 if self.interactive else self.code

    def loop(self, lines):
        while not self.over:
            checkpoint()  # a signal that ends the program
            try:
                text = lines.read()
                if text is None:
                    break
                with turn() if self.interactive else contextlib.nullcontext():
                    self.enter(text)
            except (BrokenPipeError, OutputError):
                raise
            except Stopped:
                checkpoint()
                self.tell("stopped")
            except Exception as error:
                self.code = failed(error, self.args.verbose)

    def greet(self):
        """Says what is there already."""
        if self.questions:
            self.tell(f"{brief(self.session.path)} goes on: /stats shows its size, /undo takes questions back")
        if self.pending:
            self.tell(f"{self.waiting()} for the next question")

    def enter(self, text):
        """Does what an entry says: a command, media that were dragged in, a question."""
        text = finished(text)
        found, rest = ([], text) if known(text) or len(text) > LONG else dragged(text, media_kind)
        if not found and (given := command(text)):
            name, rest = given
            check_rest(name, rest)
            return COMMANDS[name][2](self, rest)
        for kind, path in found:
            self.add(kind, path)
        if rest.strip():
            self.ask(proper(rest.strip()))

    def tell(self, text):
        """Prints what is no answer."""
        print(printable(text), file=sys.stderr, flush=True)

    # -------------------------------------------------------------------------------------------- questions

    @property
    def questions(self):
        """How many were answered."""
        return sum(message["role"] == "user" for message in self.session.messages)

    @property
    def temperature(self):
        """That of the answers."""
        own = self.settings["temperature"]
        return self.model.config.generation.temperature if own is None else own

    def add(self, kind, path, **settings):
        """Adds a file to the next question. Raises MediaError."""
        path, _ = local_path(expanded(path), kind)
        self.pending.append(arguments.media_part(self.args, kind, path, arguments.ANY_VIDEO) | settings)
        self.tell(f"{self.waiting()} for the next question")

    def question(self, text):
        """The messages that ask a question with the pending media, or that are what the last answer's call returns."""
        content = [*self.pending, {"type": "text", "text": text}] if self.pending else text
        before = self.session.messages
        system = [{"role": "system", "content": self.system}] if self.system and not before else []
        return [*system, {"role": "tool" if before and before[-1].get("tool_calls") else "user", "content": content}]

    def ask(self, text):
        """Asks a question with the pending media."""
        try:
            if self.answer(self.question(text), self.settings["seed"]):
                self.pending = []
        except (MediaError, ContextError, UsageError) as error:
            self.code = failed(error, self.args.verbose)
            if isinstance(error, ContextError) and self.questions:
                self.tell(f"the conversation takes {self.session.tokens:,} of the tokens: /undo and /clear make room")
            if self.pending:  # they stay: without them the answer would be about nothing
                self.tell(f"{self.waiting()} still for the next question; /undo takes files back")

    def waiting(self):
        """Says which media the next question has."""
        names = ", ".join(map(named, self.pending[:4])) + ", ..." * (len(self.pending) > 4)
        return f"{names} {'is' if len(self.pending) == 1 else 'are'}"

    def take_back(self):
        """Forgets the last question and its answer; returns the messages that asked it. Raises UsageError."""
        before = self.session.messages
        if not before:
            raise UsageError("there is no question yet")
        self.session.undo()
        self.changed = True
        return [message for message in before[len(self.session.messages) :] if message["role"] != "assistant"]

    def asked(self):
        """The messages that asked the last question."""
        before = list(
            itertools.takewhile(lambda message: message["role"] != "assistant", self.session.messages[-2::-1])
        )
        return before[::-1]

    def again(self, seed):
        """Answers the last question again."""
        for part in parts(self.asked(), "video", "image"):  # a file that is gone costs no answer
            source, kind = part[part["type"]], part["type"]
            check_kept(kind, source)
            if not is_base64(source):
                local_path(source, kind)
        if not self.session.messages:
            raise UsageError("there is no question yet")
        self.answer(None, seed)

    def answer(self, messages, seed):
        """Shows the answer to messages and keeps it; returns whether there is one. messages: None for the last question."""
        try:
            reply = self.answered(messages, seed)
        except Stopped:  # while files were opened
            reply = None
        stopped = reply is None or reply.finish_reason not in FINISHED
        if stopped and not (reply and reply.token_ids):
            then = "ask again to go on" if messages else "the answer of before stays"
            self.tell(f"stopped before the answer began: {then}")
            return False
        self.reply, self.seed, self.changed = reply, seed, True
        if stopped:
            say("note", "the answer is partial: it was stopped, and its beginning stays in the conversation")
        self.keep()
        return True

    def answered(self, messages, seed):
        """The Reply to messages, shown as it is made."""
        if self.progress:
            self.progress.restart()
        settings = {**self.settings, "seed": seed, "progress": self.progress}
        with arguments.called(messages or self.asked()):
            stream = self.session.again(**settings) if messages is None else self.session.ask(messages, **settings)
        answer.show(self.model, stream, self.args, self.progress, text=not self.args.json)
        if self.args.json:
            print(answer.as_json(self.model, stream.prompt, stream.reply), flush=True)
        if self.interactive and stream.reply.finish_reason == "tool_calls":
            self.tell(f"the next line is what {stream.reply.tool_calls[-1].name} returns")
        if not self.args.quiet and stream.reply.token_ids:
            self.tell(answer.closing_line(stream.reply, self.loaded, self.model.device))
            self.loaded = False
        return stream.reply

    # -------------------------------------------------------------------------------------------- files

    def load(self, path):
        """Goes on with another conversation. Raises SessionFileError, ContextError, UsageError, Stopped."""
        path = expanded(path)
        if not os.path.lexists(path):
            raise SessionFileError(f"there is no session file {path}: check the path")
        found = self.opened(path)
        self.keep()
        self.session.close()
        self.session, self.pending, self.reply, self.changed = found, [], None, False

    def save(self, path=None):
        """Saves the conversation as it is now; with --session, later answers go on being saved there."""
        own = self.session.file
        with using(None):  # also after a signal
            self.session.save(path and expanded(path), replace=path is not None)
        if path is None:
            self.changed = False
        elif self.kept:
            self.session.file = own

    def keep(self, said=None):
        """Saves the conversation where --session keeps it, if it has changed. said: a fault that need not be said again."""
        if not self.kept or not self.changed:
            return
        try:
            self.save_beside()
        except IvliteError as error:
            self.code, self.fault = error.exit_code, str(error)
            if self.fault != said:
                failed(error, self.args.verbose)

    def save_beside(self):
        """Saves the conversation; under a name of its own from now on, where another process goes on with the same one."""
        try:
            return self.save()
        except OvertakenError:
            before = self.session.path
        root, ending = os.path.splitext(before)
        for path in (f"{root}-{number}{ending}" for number in itertools.count(2)):
            if os.path.lexists(path):
                continue
            with contextlib.suppress(OvertakenError), using(None):  # a third process may choose the same name
                self.session.save(path, replace=False)
                break
        self.changed = False
        say(
            "warning",
            f"{brief(before)} was saved by another process meanwhile: this conversation is kept in {brief(path)}",
        )


def named(part):
    """A media part for a sentence: "video clip.mp4"."""
    return f"{part['type']} {str(part[part['type']])[:200]}"
