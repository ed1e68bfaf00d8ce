"""py.typed means it: the public modules are annotated, and a user's program is checked against them by `mypy --strict`."""

import importlib.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")

PROGRAM = """
from typing import assert_type

import numpy as np

import ivlite
from ivlite.agent import Agent, Answer, Budget
from ivlite.quantize import quantize

quantize("folder", "model.gguf", type="q4_0")
stop = ivlite.Stop()
stop.after(60)
with ivlite.load("model.gguf", context=4096, threads=2, progress=lambda stage, done, total: None) as model:
    assert_type(model, ivlite.Model)
    video = {"type": "video", "video": "a.mp4", "fps": 2}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}]
    for delta in model.stream(messages, max_new_tokens=20, temperature=0.5, stop=["\\n", stop]):
        assert_type(delta.text, str)
        assert_type(delta.thinking, bool)
    reply = model.chat(messages)
    assert_type(reply, ivlite.Reply)
    assert_type(reply.text, str)
    assert_type(reply.token_ids, list[int])
    assert_type([entry.logprob for entry in model.logprobs(messages, "Yes", top=1)], list[float])
    with model.session() as session:
        assert_type(session, ivlite.Session)
        for delta in session.ask("Who?", videos=["b.mp4"], max_new_tokens=20):
            assert_type(delta.text, str)
        mark, twin = session.mark(), session.branch()
        session.rollback(mark)
        assert_type(twin.stream(messages, dedupe=True).reply.usage["cached_tokens"], int)
        assert_type((session.tokens, session.capacity, session.nbytes), tuple[int, int, int])
        session.save("talk.ivs")
    with Agent(model, ["talk.mp4"], tools=["watch", "look"], budget=Budget(frames=64)) as agent:
        answer = agent.ask("When does it begin?", stop=stop)
        assert_type(answer, Answer)
        assert_type(answer.claims[0].confirmed, bool | None)
        assert_type([e.start for e in answer.cited()], list[float])
        for event in agent.stream("And then?"):
            print(event)
    with ivlite.Engine(model, most=4) as engine:
        first, second = engine.stream(messages, client="a", seed=1), engine.add(session.ask("And?"), client="b")
        for delta in first:
            assert_type(delta.text, str)
        assert_type(second.reply, ivlite.Reply)
        for index, delta in ivlite.together([model.stream(messages), first]):
            assert_type((index, delta.text), tuple[int, str])
        assert_type((engine.running, engine.waiting, engine.nbytes), tuple[int, int, int])
    prompt = model.prepare(messages)
    assert_type(prompt.token_ids, list[int])
    merged, deepstack = model.encode_vision(prompt)
    np.concatenate([merged, deepstack[0], model.logits(prompt)])
try:
    ivlite.load("gone.gguf")
except ivlite.IvliteError as error:
    assert_type(error.exit_code, int)
"""
WRONG = {
    "ivlite.load(5)": "arg-type",
    'ivlite.load("m", threads="two")': "arg-type",
    'ivlite.load("m").chat("Hello", 5)': "call-arg|misc",
    'ivlite.load("m").stream([], max_tokens=5)': "call-arg",
    'ivlite.load("m").answer': "attr-defined",
    "ivlite.lode": "attr-defined",
    'ivlite.SamplingParams(temperature="hot")': "arg-type",
}


def checked(folder, program):
    """The exit code and the output of mypy over a program that imports the installed package."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), "program.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout


def test_a_program_has_types(tmp_path):
    code, output = checked(tmp_path, PROGRAM)
    assert code == 0, output


def test_what_is_wrong_is_found(tmp_path):
    code, output = checked(tmp_path, "import ivlite\n" + "\n".join(WRONG))
    assert code == 1
    for number, (line, kinds) in enumerate(WRONG.items(), 2):
        found = [text for text in output.splitlines() if text.startswith(f"program.py:{number}:")]
        assert any(f"[{kind}]" in text for text in found for kind in kinds.split("|")), (line, output)
