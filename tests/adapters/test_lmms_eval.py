"""The model `ivlite` of lmms-eval, and its client of a server, run by lmms-eval itself on a small task.

lmms-eval brings torch and much else: docs/guides/evaluating.md has the command that installs it for these tests.
"""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import ivlite
from ivlite.gguf import SHIPPED

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed"),
    pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package"),
]
HERE = Path(__file__).parent
WHAT, TOLD = "What happens?", "A yellow circle moves right, then a red cross moves left."
SHAPE, CROSS = "What shape is the red thing?", "The red one is a cross."
ARGUMENTS = "pretrained=demo,context=2048"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a clip, a file that is no video, and the documents of the tasks."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE.parents[1] / "examples" / "demo_model"))
        importlib.import_module("evaluate").clip(folder / "clip.mp4")
    (folder / "broken.mp4").write_bytes(b"not a video")
    clip, end = str(folder / "clip.mp4"), 5.0
    documents = [
        {"video": clip, "end": end, "question": WHAT, "choices": ["A red circle moves left.", TOLD], "answer": 1},
        {"video": clip, "end": end, "question": SHAPE, "choices": [CROSS, "The red one is a circle."], "answer": 0},
        {"video": str(folder / "broken.mp4"), "end": end, "question": WHAT, "choices": ["No.", "Yes."], "answer": 1},
    ]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return folder


@contextmanager
def server(root):
    """The URL of `ivlite serve` in a process of its own."""
    command = [sys.executable, "-m", "ivlite", "serve", "demo", "--context", "2048", "--port", "0", "--quiet"]
    process = subprocess.Popen([*command, "--media-root", str(root)], stdout=subprocess.PIPE, text=True)
    try:
        yield re.fullmatch(r"demo at (http://.*/v1)\n", process.stdout.readline())[1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def results(folder):
    """What each run gave, by its name."""
    chat = {"model": "ivlite", "model_args": ARGUMENTS}
    spoken = ["clips_speak", "clips_part", "clips_rounds"]
    with server(folder) as url:
        client = (
            f"model=demo,base_url={url},api_key=x,num_concurrent=2,max_retries=1,pass_video_url=True,max_frames_num=16"
        )
        runs = {
            "chat": {**chat, "tasks": spoken, "batch_size": 2},
            "one by one": {**chat, "tasks": spoken[:1]},
            "simple": {**chat, "tasks": ["clips_choose", "clips_speak"], "force_simple": True},
            "client": {"model": "openai", "model_args": client, "tasks": spoken[:1]},
        }
        offline = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, str(HERE / "run_lmms_eval.py")], input=json.dumps(list(runs.values())), text=True,
            capture_output=True, cwd=folder, env=os.environ | offline, timeout=1200,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(runs, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", context=2048) as model:
        yield model


def asked(folder, question, **more):
    part = {"type": "video", "video": str(folder / "clip.mp4"), **more}
    return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("run", ["chat", "one by one", "simple", "client"])
def test_answers(results, run):
    """Those of the model; the file that is no video costs its own document only."""
    task = results[run]["clips_speak"]
    (what,), (shape,), (broken,) = (sample[0] for sample in task["samples"])
    assert [what, shape] == [TOLD, CROSS] and TOLD not in broken
    assert task["scores"]["right,none"] == pytest.approx(2 / 3)


def test_part_of_a_video_and_the_end_of_an_answer(results, folder, demo):
    """A task's own messages; and of what ends an answer, a text does, and the blank line that is there always does not."""
    expected = [demo.chat(asked(folder, q, end=5.0), temperature=0, stop="right").text for q in (WHAT, SHAPE)]
    assert [sample[0][0] for sample in results["chat"]["clips_part"]["samples"][:2]] == expected
    assert not expected[0].endswith(".")


def test_rounds(results):
    rounds = [sample[0][0] for sample in results["chat"]["clips_rounds"]["samples"]]
    assert [len(texts) for texts in rounds] == [2, 2, 2]
    assert [texts[0] for texts in rounds[:2]] == [TOLD, CROSS] and all(texts[1] for texts in rounds[:2])


def test_likelihoods(results, folder, demo):
    """Multiple choice takes the likeliest answer; the numbers are sums over the tokens of each."""
    task = results["simple"]["clips_choose"]
    assert task["scores"]["acc,none"] == task["scores"]["acc_norm,none"] == pytest.approx(2 / 3)
    assert task["scores"]["exact_match,none"] == pytest.approx(2 / 3)
    documents = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    for document, sample in zip(documents[:2], task["samples"], strict=False):
        for text, ((loss, greedy),) in zip(document["choices"], sample, strict=True):
            entries = demo.logprobs(asked(folder, document["question"]), text)
            assert loss == pytest.approx(-sum(entry.logprob for entry in entries), rel=0.01, abs=0.01)
            assert greedy == (text == document["choices"][document["answer"]])
    assert [pair for (pair,) in task["samples"][2]] == [[float("inf"), False]] * 2
