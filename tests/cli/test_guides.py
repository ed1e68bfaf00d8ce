"""The commands and the Python of docs/guides, word for word, in a folder that has what they name."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import ivlite

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
ELSEWHERE = ("InternVideo3-8B-Instruct", "internvideo3.gguf", "IN -c")  # 19 GB to download


def blocks(guide, language):
    return re.findall(rf"^```{language}\n(.*?)^```", guide.read_text(), re.M | re.S)


def commands(guide):
    """The `ivlite` commands of a guide that need no download, as lists of words."""
    lines = [line for block in blocks(guide, "sh") for line in block.splitlines()]
    return [
        shlex.split(line, comments=True)[1:]
        for line in lines
        if line.startswith("ivlite ") and not any(w in line for w in ELSEWHERE)
    ]


@pytest.fixture
def folder(tmp_path, toy):
    shutil.copytree(toy / "checkpoint", tmp_path / "toy")
    for place in ("clips", "examples"):
        (tmp_path / place).mkdir()
    shutil.copy(toy / "clip.mp4", tmp_path / "clips")
    shutil.copy(ROOT / "examples" / "clip.mp4", tmp_path / "examples")
    return tmp_path


@pytest.mark.parametrize("guide", GUIDES, ids=lambda p: p.stem)
def test_commands(folder, guide):
    for recipe in blocks(guide, "toml"):
        (folder / "mine.toml").write_text(recipe)
    for tools in blocks(guide, "json"):
        (folder / "tools.json").write_text(tools)
    for args in commands(guide):
        done = ivlite(*args, cwd=folder)
        assert done.returncode == 0, (args, done.stderr)


@pytest.mark.parametrize("guide", [g for g in GUIDES if blocks(g, "python")], ids=lambda p: p.stem)
def test_python(folder, guide):
    for program in blocks(guide, "python"):
        done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_every_exit_code_has_a_section():
    from ivlite import errors

    text = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
    kinds = [
        v
        for v in vars(errors).values()
        if isinstance(v, type) and issubclass(v, errors.IvliteError) and v.exit_code > 1
    ]
    assert sorted({k.exit_code for k in kinds}) == [2, 3, 4, 5, 6, 7, 8, 130]
    for kind in kinds:
        assert re.search(rf"^## {kind.exit_code} ", text, re.M) and f"`{kind.__name__}`" in text


@pytest.mark.parametrize(
    "guide", [*GUIDES, *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))], ids=lambda p: p.stem
)
def test_links_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", guide.read_text()):
        assert (guide.parent / target).exists(), target
