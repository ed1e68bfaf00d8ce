"""Advice names only options that the command has which gives it."""

import argparse
import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import ivlite
from ivlite import cli, loading
from ivlite.cli import bench, run
from ivlite.errors import FLAG, IvliteError, OutOfMemoryError, either
from ivlite.gguf import SHIPPED

SOURCE = Path(ivlite.__file__).parent
COMMANDS = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
DEMO = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")

LOADING = {name for name, parser in COMMANDS.items() if "--device" in parser._option_string_actions}
QUANTIZE, SERVE = {"quantize"}, {"serve"}
# Modules with texts that name options, and the commands that say them. Errors with `ways` fit themselves to the command.
FITTED = {"loading.py", "ops/cuda_memory.py"}
SAID = {
    "batch/cluster.py": {"batch"}, "batch/inputs.py": {"batch"}, "evaluate/compare.py": {"eval"},
    "library/database.py": {"agent", "find", "index", "mcp"}, "output.py": QUANTIZE,
    "serve/listen.py": SERVE, "serve/parts.py": SERVE, "session/table.py": {"run", "chat"},
    "plan/nearest.py": {"run", "chat", "plan", "batch"}, "plan/planner.py": {"run", "chat", "plan", "batch"},
    "quantize/encode.py": QUANTIZE, "quantize/golden.py": QUANTIZE, "quantize/recipes.py": QUANTIZE,
    "adapters/lmms_eval.py": set(),  # options of lmms-eval
    "agent/export/page.py": set(), "agent/export/page_style.py": set(),  # properties of CSS
}  # fmt: skip


def options(command):
    return {action.dest for action in COMMANDS[command]._actions}


def named(path):
    """The options that the texts of a module name, without docstrings and what stands in backticks: whole commands."""
    tree = ast.parse(path.read_text())
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, owners) and isinstance(n.body[0], ast.Expr)}
    formatted = [
        [part for part in n.values if isinstance(part, ast.Constant)]
        for n in ast.walk(tree)
        if isinstance(n, ast.JoinedStr)
    ]
    inside = docs | {id(part) for parts in formatted for part in parts}
    texts = ["".join(str(part.value) for part in parts) for parts in formatted]
    texts += [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside
    ]
    return {flag for text in texts for flag in FLAG.findall(re.sub("`[^`]*`", "", text))}


def test_shared_modules_name_options_that_their_commands_have():
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("cli/") or name == "quantize/cli.py" or name in FITTED or not (flags := named(path)):
            continue
        assert name in SAID, f"{name} names {flags}: say here which commands say it, or give the error `ways`"
        for command in SAID[name]:
            missing = {flag for flag in flags if flag.replace("-", "_") not in options(command)}
            assert not missing, f"{command} has no {missing}, which {name} advises"


def test_either():
    assert [either(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a or b", "a, b or c"]


def test_an_error_fits_itself_to_a_command():
    error = OutOfMemoryError("it is full", ["--load mmap (slower)", "a smaller --max-frames", "--kv q4", "less"])
    assert str(error) == "it is full: use --load mmap (slower), a smaller --max-frames, --kv q4 or less"
    assert str(error.fitted({"kv", "max_frames"})) == "it is full: use a smaller --max-frames, --kv q4 or less"
    assert str(IvliteError("a", ["--kv q4"]).fitted(())) == "a" and type(error.fitted(())) is OutOfMemoryError


def memory_errors(monkeypatch):
    """Those of weights that do not fit, on the machine and a card, with and without room for a smaller context."""
    text = SimpleNamespace(kv_lora_rank=(96,), qk_rope_head_dim=32, num_layers=1)
    tensors = [SimpleNamespace(name="blk.0.a", nbytes=1000)]
    for card in (False, True):
        for load in ("repack", "mmap"):
            for free in (0, loading.MARGIN + 10**6):
                operations = SimpleNamespace(free_memory=lambda free=free: free, device="cuda:0") if card else object()
                monkeypatch.setattr(loading, "available_memory", lambda free=free: free)
                with pytest.raises(OutOfMemoryError) as caught:
                    loading.check_fit(operations, tensors, load, text, 10**6, "q8")
                yield caught.value
    yield OutOfMemoryError("memory ran out", cli.MEMORY)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_without_memory_every_command_advises_what_it_has(command, monkeypatch):
    for error in memory_errors(monkeypatch):
        said = str(error.fitted(options(command)))
        assert {flag.replace("-", "_") for flag in FLAG.findall(said)} <= options(command), said
        assert command not in LOADING or ": use " in said


@pytest.mark.parametrize("has", [True, False])
def test_verbose_is_advised_where_there_is_such_an_option(has, monkeypatch, capsys):
    command, module, rest = ("run", run, ["m.gguf"]) if has else ("bench", bench, ["m.gguf"])
    monkeypatch.setattr(module, "run", lambda args: 1 / 0)
    assert cli.main([command, *rest]) == 1
    err = capsys.readouterr().err
    assert "report it" in err and ("--verbose" in err) is has


@DEMO
@pytest.mark.parametrize(
    "args", [["calibrate", "demo", "-o", "s.gguf"], ["eval", "demo", "--against", "demo"], ["bench", "demo"]]
)
def test_a_model_that_does_not_fit(args, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ivlite.loading.available_memory", lambda: 10_000_000)
    assert cli.main(args) == 5
    err = capsys.readouterr().err
    assert "a machine with more memory" in err and "--load" not in err and "--type" not in err


@DEMO
def test_bench_names_its_own_options(monkeypatch, capsys):
    assert cli.main(["bench", "demo", "-p", "1000000"]) == 2
    assert "--prompt 1000000" in (err := capsys.readouterr().err) and "give fewer" in err
    assert cli.main(["bench", "--random", "tiny", "-d", "0,300000"]) == 2
    assert "--depth 300000" in (err := capsys.readouterr().err) and "holds 262,144" in err
    monkeypatch.setattr("ivlite.loading.available_memory", lambda: loading.MARGIN + 10**7)
    assert cli.main(["bench", "--random", "tiny", "--type", "q4_0", "-p", "200000"]) == 5
    assert "a smaller --depth or --prompt" in (err := capsys.readouterr().err) and "--context" not in err
