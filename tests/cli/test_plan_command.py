"""`ivlite plan`, and what `run` says of its plan."""

import json

import pytest
from command import ivlite, refused

from ivlite.cli.arguments import duration
from ivlite.cli.plan import size


def test_a_plan_says_what_a_question_costs(toy):
    done = ivlite("plan", "model.gguf", "--video", "clip.mp4", "--json", cwd=toy)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (
        made["fits"]
        and made["videos"][0]["name"] == "clip.mp4"
        and made["videos"][0]["seconds"] == pytest.approx(3, abs=0.1)
    )
    assert {"load", "scan", "decode", "vision", "prefill", "generate"} == set(made["seconds"]) and made["wait"] > 0
    told = ivlite("plan", "model.gguf", "--video", "clip.mp4", cwd=toy)
    assert f"{made['prompt_tokens']:,} tokens, {made['vision_tokens']:,} of vision" in told.stdout
    run = ivlite("run", "model.gguf", "--video", "clip.mp4", "--json", "--max-new-tokens", 2, cwd=toy)
    ran = json.loads(run.stdout)
    assert ran["plan"]["videos"] == made["videos"] and ran["usage"]["prompt_tokens"] == made["prompt_tokens"]
    assert ran["plan"]["took"]["prompt_tokens"] == made["prompt_tokens"] and "ivlite: plan: " in run.stderr


def test_what_does_not_fit_is_refused_after_the_plan(toy):
    args = ("--video", "clip.mp4", "--fps", 100, "--context", 128)
    done = ivlite("plan", "model.gguf", *args, cwd=toy)
    refused(done, 7, "the context holds 128")
    assert "clip.mp4: " in done.stdout
    refused(ivlite("run", "model.gguf", *args, cwd=toy), 7, "the context holds 128")
    refused(
        ivlite("plan", "model.gguf", "--video", "clip.mp4", "--memory", "1M", cwd=toy),
        5,
        "of memory are needed",
        "1 MB",
    )
    refused(
        ivlite("plan", "model.gguf", "--video", "clip.mp4", "--max-wait", "0.0001", cwd=toy), 7, "the wait is to be"
    )


def test_times_and_sizes():
    assert [duration(t) for t in ("90", "90s", "2m", "1.5h", "1:30", "0.5")] == [90, 90, 120, 5400, 90, 0.5]
    assert [size(t) for t in ("8G", "1.5g", "800M", "4k", "123", "8GB")] == [8e9, 1.5e9, 8e8, 4e3, 123, 8e9]
    for parse, texts in (
        (duration, ("", "0", "-1", "2x", "m", "nan", "1e9h")),
        (size, ("", "0", "-1", "8X", "G", "1e3")),
    ):
        for text in texts:
            with pytest.raises(Exception, match="time|size"):
                parse(text)


def test_run_can_take_the_frames_of_a_limit(toy):
    """What `plan` thins to a limit it names as a budget, and that takes the same frames."""
    whole = json.loads(ivlite("plan", "model.gguf", "--video", "clip.mp4", "--json", cwd=toy).stdout)
    least = whole["peak_memory"] - 4 * whole["cache_bytes"] // 5
    limited = ivlite("plan", "model.gguf", "--video", "clip.mp4", "--memory", least, "--max-new-tokens", 1, cwd=toy)
    assert limited.returncode == 0, limited.stderr
    assert "thinned to the limits" in limited.stdout
    (line,) = (line for line in limited.stdout.splitlines() if line.startswith("run "))
    budget = line.split("--budget ")[1].split()[0]
    same = ivlite("plan", "model.gguf", "--video", "clip.mp4", "--budget", budget, cwd=toy)
    assert same.stdout.split(":")[1].split(",")[0] == limited.stdout.split(":")[1].split(",")[0]
