"""`ivlite plan`, and what `run` says of its plan."""

import json
from pathlib import Path

import pytest
from command import ivlite, refused

from ivlite import cli
from ivlite.cli.arguments import duration
from ivlite.cli.plan import size

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"


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


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (("--context", 20, "hi there you are all fine"), "use --context 256"),
        (("--context", 100, "--fps", 2, "--video", CLIP), "use --max-frames 4 or --context 256"),
        (("--context", 100, "--fps", 2, "--video", CLIP, "--video", CLIP, "word " * 8200), "give fewer videos"),
    ],
)
def test_the_advice_is_that_of_run(tmp_path, args, advice):
    told = [ivlite(command, "demo", *args, cwd=tmp_path) for command in ("plan", "run")]
    for done in told:
        refused(done, 7, f": {advice}")
        assert done.stderr.endswith(f": {advice}\n")
    assert told[0].stderr == told[1].stderr


@pytest.mark.parametrize(("limit", "code"), [(("--memory", "1M"), 5), (("--max-wait", "0.0001"), 7)])
def test_a_limit_that_the_weights_alone_pass_is_not_about_the_text(tmp_path, limit, code):
    refused(ivlite("plan", "demo", "hi", *limit, cwd=tmp_path), code, ": ask for less")


MORE = {
    "quantize": ["-o", "x.gguf"],
    "calibrate": ["-o", "x.gguf"],
    "batch": ["x.mp4", "-o", "x"],
    "mcp": ["--root", "."],
    "eval": ["--against", "x"],
}
BOTH = ("plan", "find", "index", "clip", "run", "chat", "agent", "serve", *MORE)


@pytest.mark.parametrize("command", BOTH)
def test_quiet_and_verbose_contradict_each_other(capsys, command):
    assert cli.main([command, "demo", *MORE.get(command, []), "--quiet", "--verbose"]) == 2
    assert capsys.readouterr().err == "ivlite: error: --quiet and --verbose contradict each other\n"


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
