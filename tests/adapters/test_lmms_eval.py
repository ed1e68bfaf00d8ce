"""The model `ivlite` of lmms-eval, and its client of a server, run by lmms-eval itself on a small task.

lmms-eval brings torch and much else: docs/guides/evaluating.md has the command that installs it for these tests.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
HERE = Path(__file__).parent
WHAT, TOLD = "What happens?", "A yellow circle moves right, then a red cross moves left."
SHAPE, CROSS = "What shape is the red thing?", "The red one is a cross."
ARGUMENTS = "pretrained=demo,context=2048"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    """A folder with the documents of the tasks; one names a file that is no video."""
    folder, broken = tmp_path_factory.mktemp("lmms_eval"), clip.parent / "broken.mp4"
    broken.write_bytes(b"not a video")
    what, shape = (
        {"video": str(clip), "end": 5.0, "question": WHAT},
        {"video": str(clip), "end": 5.0, "question": SHAPE},
    )
    documents = [
        {**what, "choices": ["A red circle moves left.", TOLD], "answer": 1},
        {**shape, "choices": [CROSS, "The red one is a circle."], "answer": 0},
        {**what, "video": str(broken), "choices": ["No.", "Yes."], "answer": 1},
    ]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return folder


@pytest.fixture(scope="module")
def results(folder, url):
    """What each run gave, by its name."""
    chat = {"model": "ivlite", "model_args": ARGUMENTS}
    spoken = ["clips_speak", "clips_part", "clips_rounds"]
    client = f"model=demo,base_url={url},api_key=x,num_concurrent=2,max_retries=1,pass_video_url=True,max_frames_num=16"
    runs = {
        "chat": {**chat, "tasks": spoken, "batch_size": 2},
        "one by one": {**chat, "tasks": spoken[:1]},
        "simple": {**chat, "tasks": ["clips_choose", "clips_speak"], "force_simple": True},
        "client": {"model": "openai", "model_args": client, "tasks": spoken[:1]},
    }
    offline = {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "run_lmms_eval.py")], input=json.dumps(list(runs.values())), text=True,
        capture_output=True, cwd=folder, env=os.environ | offline, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(runs, json.loads(done.stdout.splitlines()[-1]), strict=True))


def asked(clip, question, **more):
    part = {"type": "video", "video": str(clip), **more}
    return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("run", ["chat", "one by one", "simple", "client"])
def test_answers(results, run):
    """Those of the model; the file that is no video costs its own document only."""
    task = results[run]["clips_speak"]
    (what,), (shape,), (broken,) = (sample[0] for sample in task["samples"])
    assert [what, shape] == [TOLD, CROSS] and TOLD not in broken
    assert task["scores"]["right,none"] == pytest.approx(2 / 3)


def test_part_of_a_video_and_the_end_of_an_answer(results, clip, demo):
    """A task's own messages; and of what ends an answer, a text does, and the blank line that is there always does not."""
    expected = [demo.chat(asked(clip, q, end=5.0), temperature=0, stop="right").text for q in (WHAT, SHAPE)]
    assert [sample[0][0] for sample in results["chat"]["clips_part"]["samples"][:2]] == expected
    assert not expected[0].endswith(".")


def test_rounds(results):
    rounds = [sample[0][0] for sample in results["chat"]["clips_rounds"]["samples"]]
    assert [len(texts) for texts in rounds] == [2, 2, 2]
    assert [texts[0] for texts in rounds[:2]] == [TOLD, CROSS] and all(texts[1] for texts in rounds[:2])


def test_likelihoods(results, folder, clip, demo):
    """Multiple choice takes the likeliest answer; the numbers are sums over the tokens of each."""
    task = results["simple"]["clips_choose"]
    assert task["scores"]["acc,none"] == task["scores"]["acc_norm,none"] == pytest.approx(2 / 3)
    assert task["scores"]["exact_match,none"] == pytest.approx(2 / 3)
    documents = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    for document, sample in zip(documents[:2], task["samples"], strict=False):
        for text, ((loss, greedy),) in zip(document["choices"], sample, strict=True):
            entries = demo.logprobs(asked(clip, document["question"]), text)
            assert loss == pytest.approx(-sum(entry.logprob for entry in entries), rel=0.01, abs=0.01)
            assert greedy == (text == document["choices"][document["answer"]])
    assert [pair for (pair,) in task["samples"][2]] == [[float("inf"), False]] * 2
