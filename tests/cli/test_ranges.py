"""What each numeric option takes at its limits, what it refuses beyond them, and the defaults."""

import argparse

import pytest

from ivlite import cli
from ivlite.cli import arguments, bench

MOST = 2**63
COUNT = ((1, MOST), (0, MOST + 1, 1.5, "x", ""))
SHARE = ((0, 0.5, 1), (-0.001, 1.001, "nan", "x"))
RATE = ((0.001, 1000), (0, -1, 1000.5, "inf"))
RANGES = {
    "run": {
        "--fps": RATE, "--max-frames": COUNT, "--min-pixels": COUNT, "--max-pixels": COUNT, "--max-new-tokens": COUNT,
        "--temperature": ((0, 100), (-0.1, 100.5)), "--top-k": ((0, 2**31), (-1, 2**31 + 1)), "--top-p": SHARE,
        "--min-p": SHARE, "--repetition-penalty": ((0.01, 100), (0.009, 101)),
        "--seed": ((0, 2**64 - 1), (-1, 2**64)), "--stream": ((0, MOST), (-1, MOST + 1)), "--thinking-budget": ((0, MOST), (-1, MOST + 1)),
        "--context": COUNT, "--threads": ((1, 1024), (0, 1025)),
    },
    "calibrate": {
        "--limit": COUNT, "--fps": RATE, "--max-frames": COUNT, "--max-pixels": COUNT, "--context": COUNT,
        "--threads": ((1, 1024), (0, 1025)),
    },
    "eval": {
        "--answer-tokens": ((0, 4096), (-1, 4097)), "--limit": COUNT, "--fps": RATE, "--max-frames": COUNT,
        "--max-pixels": COUNT, "--context": COUNT, "--threads": ((1, 1024), (0, 1025)),
    },
    "serve": {
        "--port": ((0, 65535), (-1, 65536)), "--parallel": ((1, 256), (0, 257)), "--max-waiting": ((1, 100_000), (0, 100_001)),
        "--context": COUNT, "--threads": ((1, 1024), (0, 1025)),
    },
    "verify": {"--threads": ((1, 1024), (0, 1025))},
    "bench": {
        "--threads": ((1, 1024), (0, 1025)), "--prompt": ((1, 2**20), (0, 2**20 + 1)), "--new": ((1, 2**20), (0, 2**20 + 1)),
        "--depth": (("0", "0,1", "1048576"), ("-1", "1048577", "1,", "x")),
        "--vision": (("1x1x1", "65536x65536x65536"), ("0x1x1", "65537x1x1", "1x65537x1", "1x1x65537", "1x1", "1x1x1x1")),
    },
}  # fmt: skip
CASES = [(command, option, *both) for command, options in RANGES.items() for option, both in options.items()]


def options(command):
    """option -> action of a command."""
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: action for action in commands.choices[command]._actions for name in action.option_strings}


@pytest.mark.parametrize("command, option, good, bad", CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_limits(command, option, good, bad):
    parse = options(command)[option].type
    for value in good:
        assert parse(str(value)) == value or isinstance(value, str)
    for value in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(str(value))


def test_every_numeric_option_is_in_the_table():
    for command, known in RANGES.items():
        numeric = {
            a.option_strings[-1] for a in options(command).values() if "parse" in getattr(a.type, "__name__", "")
        }
        assert numeric <= known.keys(), command


def test_bench_reads_depths_and_sizes():
    assert bench.depths("0,4096,7") == (0, 4096, 7) and bench.frames("640x352x8") == (640, 352, 8)


@pytest.mark.parametrize(
    "command, option, default",
    [
        ("run", "--max-new-tokens", 1024), ("run", "--seed", 0), ("run", "--kv", "q8"),
        ("bench", "--prompt", 512), ("bench", "--new", 32), ("bench", "--depth", (0,)), ("bench", "--kv", "q8"),
    ],
)  # fmt: skip
def test_defaults_are_those_of_the_help(command, option, default):
    action = options(command)[option]
    assert action.default == default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    assert "default" not in (action.help or "") or shown in action.help


@pytest.mark.parametrize(
    "low, high, above, text",
    [
        (1, float("inf"), False, "at least 1$"),
        (0, 5, True, "above 0 and at most 5$"),
        (0, 5, False, "at least 0 and at most 5$"),
    ],
)
def test_a_number_out_of_range_is_told_the_range(low, high, above, text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        arguments.number(low, high, above)("-3")
    assert arguments.number(0)("1e300") == 1e300


MANY = "9" * 400  # digits: infinite as a float, and more than a float can be made a whole number of
HUGE = {
    "run": [("--budget", MANY + "k"), ("--context", MANY + "M"), ("--start", MANY + ":00"), ("--end", MANY + ":00:00"),
            ("--seed", MANY), ("--fps", MANY), ("--max-frames", "9" * 5000)],
    "plan": [("--max-wait", MANY + ":00"), ("--max-wait", MANY + "h"), ("--memory", MANY + "G")],
    "clip": [("--start", MANY + ":00"), ("--end", MANY)],
    "find": [("--start", MANY + ":00"), ("--max-wait", MANY + ":00")],
}  # fmt: skip


@pytest.mark.parametrize("command, option, text", [(c, *pair) for c, pairs in HUGE.items() for pair in pairs],
                         ids=lambda v: v[:9])  # fmt: skip
def test_numbers_of_many_digits_are_refused_in_one_short_sentence(command, option, text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        options(command)[option].type(text)
    assert len(str(error.value)) <= 160 and "finite" not in str(error.value)


def test_times_and_tokens_are_what_they_were():
    assert arguments.moment("1:30.5") == 90.5 and arguments.moment("1:00:00") == 3600 and arguments.moment("0.1") == 0.1
    assert arguments.tokens("32k") == 32768 and arguments.tokens("1.5M") == 3 << 19 and arguments.duration("1:30") == 90
