"""Cutting decoded text into deltas: thinking apart, stop strings honoured, whatever the cuts between tokens."""

import pytest

from ivlite.engine.reply import TextFilter


def run(text, stop=(), size=1, thinking=False):
    """Answer, thinking and stopped after pushing text in parts of `size` characters."""
    filter = TextFilter(stop, thinking)
    deltas = []
    for i in range(0, len(text), size):
        deltas += filter.push(text[i : i + size])
        if filter.stopped:
            break
    deltas += filter.flush()
    return (
        "".join(p.text for p in deltas if not p.thinking),
        "".join(p.text for p in deltas if p.thinking),
        filter.stopped,
    )


SIZES = [1, 2, 3, 5, 1000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text, answer, thinking", [
    ("A red square.", "A red square.", ""),
    ("<think>\nLook.\nMore.\n</think>\n\nRed.", "Red.", "Look.\nMore."),
    ("<think></think>Red.", "Red.", ""),
    ("\n<think>a</think>b", "b", "a"),
    ("<think>never closed", "", "never closed"),
    ("<thin", "<thin", ""),
    ("Use <think> later </think>.", "Use <think> later </think>.", ""),
    ("  leading blanks stay", "  leading blanks stay", ""),
    ("", "", ""),
])  # fmt: skip
def test_thinking(text, answer, thinking, size):
    assert run(text, size=size) == (answer, thinking, False)


@pytest.mark.parametrize("size", SIZES)
def test_a_prompt_may_have_opened_the_thinking(size):
    assert run("Look.\n</think>\n\nRed.", size=size, thinking=True) == ("Red.", "Look.", False)
    assert run("never closed", size=size, thinking=True) == ("", "never closed", False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text, stop, answer", [
    ("one END two", ["END"], "one "),
    ("one EN two", ["END"], "one EN two"),
    ("ends with EN", ["END"], "ends with EN"),
    ("aab", ["ab"], "a"),
    ("x\n\ny", ["\n\n"], "x"),
    ("later, first wins", ["wins", "first"], "later, "),
])  # fmt: skip
def test_stop(text, stop, answer, size):
    got, _, stopped = run(text, stop, size)
    assert got == answer and stopped == (answer != text)


@pytest.mark.parametrize("size", SIZES)
def test_stop_does_not_apply_to_thinking(size):
    assert run("<think>a END b</think>c END d", ["END"], size) == ("c ", "a END b", True)
