"""A model that is right: it plays the expert in the agent's conversation, and answers truly what tools ask apart.

It stands where the product's agent expects a Model, so that the product's own loop and tools write what training shows.
"""

import json
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import play
from conversations import Roll
from expert import Expert

from ivlite.agent import say
from ivlite.engine.calls import ToolCall
from ivlite.prompt import TOOLS_AFTER, TOOLS_BEFORE, plain_tools

ROOM = 1 << 20  # tokens: nothing is folded
SURE, UNSURE, DOUBTS = (2.5, 7.0), (0.1, 2.5), 0.15  # how far apart the logits of yes and no are; share of doubts


@dataclass
class Turn:
    """given: what the model was given since it spoke last, texts and views in their order, control tokens spelled out.

    said: what it says then. question: what it is about. choice: the calls that it may make there, as `tool_choice` takes them.
    """

    given: list
    said: str
    question: object
    choice: object = None


class Oracle:
    """question: that which is asked next. turns: of the conversation with tools. sure: how sure it is apart, 0.5 to 1."""

    def __init__(self, config, tokenizer, rng):
        self.config, self.tokenizer, self.rng = config, tokenizer, rng
        self.expert, self.question, self.turns = Expert(), None, []

    def room(self, held=0):
        return ROOM

    def session(self):
        return Conversation(self)

    def odds(self, yes):
        """Logits after a question apart: right, but now and then hardly sure, as a model is that only sees."""
        out = np.zeros(self.config.text.vocab_size, np.float32)
        sure = self.rng.uniform(*(UNSURE if self.rng.random() < DOUBTS else SURE)) * (1 if yes else -1)
        out[self.tokenizer.encode(say.YES)[0]], out[self.tokenizer.encode(say.NO)[0]] = sure / 2, -sure / 2
        return out


class Conversation:
    """Stands for a Session: the one with tools, or one apart."""

    def __init__(self, oracle):
        self.oracle, self.tokens, self.capacity, self.nbytes = oracle, 0, ROOM, 0
        self.call = None  # (tool, arguments) that was said last
        self.said = ""
        self.runner = SimpleNamespace(held=SimpleNamespace(logits=lambda count: oracle.odds(self.said == say.YES)))

    def close(self):
        pass

    def mark(self):
        return None

    def stream(self, messages, tools=None, **settings):
        if tools is None:
            (message,) = messages
            views = [part["view"] for part in message["content"] if part["type"] == "video"]
            self.said = play.aside(views, message["content"][-1]["text"])
            return Said(self.said)
        return self.ask(messages, tools, **settings)

    def ask(self, messages, tools=None, **settings):
        """The next turn with tools: remembers what came back, and makes the expert's call."""
        oracle, question = self.oracle, self.oracle.question
        for message in messages:
            for call in message.get("tool_calls", ()):  # the program's own
                self.call = call["function"]["name"], json.loads(call["function"]["arguments"])
            if message["role"] == "tool":
                texts, views = parts_of(message["content"])
                oracle.expert.took(question, *self.call, "".join(texts), views)
        name, arguments = self.call = oracle.expert.act(question)
        text = json.dumps(arguments, ensure_ascii=False)
        thinks = settings.get("enable_thinking")
        thought = f"{oracle.expert.thought(question, name)}\n</think>\n\n" if thinks else ""
        given = laid_out(messages, tools, "<think>\n" if thinks else "")
        said = f"{thought}{call_text(name, text)}"
        oracle.turns.append(Turn(given, said, question, settings.get("tool_choice")))
        self.tokens = 1
        return Said("", [ToolCall(f"call_{len(oracle.turns)}", name, arguments, text)])


class Said:
    """Stands for a Stream that is at its end."""

    def __init__(self, text, calls=()):
        usage = Counter(prompt_tokens=1, new_tokens=1, cached_tokens=0)
        self.prompt = SimpleNamespace(token_ids=[0])
        self.reply = SimpleNamespace(
            text=text, thinking="", tool_calls=list(calls), token_ids=[], usage=usage, warnings=[],
            finish_reason="tool_calls" if calls else "stop",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        return iter(())

    def close(self):
        pass


# ------------------------------------------------------------------------------------------------ messages


def call_text(name, arguments):
    """A call as the model writes it. arguments: JSON text."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def parts_of(content):
    """(texts, views) of a message's content."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [p["text"] for p in parts if p["type"] == "text"]
    return texts, [p["view"] for p in parts if p["type"] == "video"]


def laid_out(messages, tools, opening=""):
    """Texts and views of messages as the prompt has them, up to where the answer begins, with `opening`."""
    out, last = [], None
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        parts = [content] if isinstance(content, str) else [p.get("text", p.get("view")) for p in content]
        if role == "system":
            signatures = "".join(f"\n{tool}" for tool in plain_tools(tools))
            out += ["<|im_start|>system\n", *parts, f"\n\n{TOOLS_BEFORE}{signatures}{TOOLS_AFTER}<|im_end|>\n"]
        elif role == "tool":
            out += ["<|im_start|>user"] if last != "tool" else []
            out += ["\n<tool_response>\n", *parts, "\n</tool_response>"]
            more = number + 1 < len(messages) and messages[number + 1]["role"] == "tool"
            out += [] if more else ["<|im_end|>\n"]
        else:
            calls = [
                call_text(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())
            ]
            out += [f"<|im_start|>{role}\n", *parts, "\n".join(calls), "<|im_end|>\n"]
        last = role
    return [*out, f"<|im_start|>assistant\n{opening}"]


def rolled(speaker, turns, at=0):
    """A Roll of turns."""
    roll = Roll(speaker, at)
    for number, turn in enumerate(turns):
        roll.text("\n" if number else "")
        for piece in turn.given:
            if isinstance(piece, str):
                roll.text(piece)
            else:
                roll.view(piece)
        roll.answer(turn.said, turn.question.events)
    return roll.done()
