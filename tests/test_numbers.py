"""Numbers of every library where a setting is a number, and messages that stay short whatever is handed over."""

import decimal
import enum
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from ivlite import errors
from ivlite.cli import main
from ivlite.errors import UsageError, sentence, shown
from ivlite.numbers import number, scalar, whole


class Index:
    def __index__(self):
        return 3


class Tensor:
    """As torch has them: a shape, item(), an __index__ that also serves arrays of one number."""

    def __init__(self, value, shape=()):
        self.value, self.shape, self.dtype = value, shape, "float32"

    def item(self):
        if self.value is None:
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")
        return self.value

    def __index__(self):
        return int(self.value)


class Broken(float):
    def __repr__(self):
        raise OSError("no")


Count = enum.IntEnum("Count", {"THREE": 3})
THREE = [
    3, 3.0, np.int8(3), np.int64(3), np.uint64(3), np.float16(3), np.float64(3), np.longdouble(3), np.array(3),
    Fraction(6, 2), Decimal("3.00"), Decimal("3E0"), Index(), Tensor(3), Tensor(3.0), Count.THREE,
]  # fmt: skip
NO_NUMBERS = [
    True, False, np.bool_(True), Tensor(True), None, "3", b"3", [3], (3,), {3}, {"3": 3}, 3j, np.complex64(3), object(),
    float("nan"), np.float32("nan"), Decimal("nan"), Decimal("snan"), Tensor(float("nan")), np.array([3]), np.array([]),
    Tensor(3, (1,)), Tensor(None), np.datetime64(3, "s"), np.timedelta64(3, "s"), np.str_("3"), int, range(3),
]  # fmt: skip
OUT_OF_RANGE = [
    0, 1000, -3, 10**400, -(10**400), float("inf"), -float("inf"), Decimal("1E+999999999"), Decimal("-inf"),
    Fraction(10**400, 3), np.uint64(2**64 - 1),
]  # fmt: skip


@pytest.mark.parametrize("value", THREE, ids=lambda v: repr(v).split(" at 0x")[0])
def test_three_is_three(value):
    assert whole("n", value, 1, 3) == 3 and type(whole("n", value, 1, 3)) is int
    assert number("x", value, 3, 3) == 3 and type(number("x", value, 3, 3)) is float


@pytest.mark.parametrize("value", NO_NUMBERS + OUT_OF_RANGE, ids=lambda v: shown(v))
def test_what_is_no_number_or_out_of_range_is_refused(value):
    for call in (lambda: whole("n", value, 1, 100), lambda: number("n", value, 1, 100)):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value).startswith("n is ") and "from 1 to 100" in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [2.5, np.float32(0.1), Fraction(30000, 1001), Decimal("0.1"), Tensor(0.5)])
def test_fractions_are_numbers_and_not_whole(value):
    assert number("x", value, 0) == float(scalar(value))
    with pytest.raises(UsageError, match="whole number"):
        whole("n", value)


def test_limits_of_a_range():
    assert number("x", 0, 0) == 0 and number("x", np.float32(1e-45), 0, above=True) > 0
    with pytest.raises(UsageError, match="a number above 0$"):
        number("x", Decimal(0), 0, above=True)
    with pytest.raises(UsageError, match="a number of at least 0$"):
        number("x", Fraction(-1, 10**400), 0)
    with pytest.raises(UsageError, match="above 0 and at most 2$"):
        number("x", 3, 0, 2, above=True)
    with pytest.raises(UsageError, match="inf"):
        number("x", float("inf"), 0)
    assert number("x", float("inf"), 0, float("inf")) == float("inf")


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


HUGE = [
    "x" * 5_000_000, "\n\x1b[31m\x00" * 1_000_000, "\ud800" * 100_000, "\u2028é" * 100_000, b"x" * 5_000_000,
    bytearray(5_000_000), [["y" * 1000] * 1000] * 1000, {"k" * 1000 + str(i): i for i in range(10_000)},
    deep(100_000), 10**6000, Decimal(10**6000), Fraction(10**6000, 7), np.zeros((1000, 1000)), np.array("z" * 100_000),
    {"a": {"b": {"c": {"d": "e" * 100_000}}}}, Broken(2), Exception("w" * 1_000_000), set(range(100_000)), ("v" * 9,) * 9999,
]  # fmt: skip


@pytest.mark.parametrize("value", HUGE, ids=lambda v: type(v).__name__)
def test_what_is_shown_is_short_and_on_one_line(value):
    text = shown(value)
    assert 0 < len(text) <= 80 and text.isprintable()
    assert len(shown(value, 20)) <= 20


def test_small_values_are_shown_as_they_are():
    values = (0, 1.5, "a", None, [1, "b"], {"c": 2}, True, (1,), Fraction(1, 3))
    assert [shown(v) for v in values] == [repr(v) for v in values]
    assert shown(np.float32(2)) == repr(np.float32(2)) and shown(np.zeros((2, 3), np.uint8)) == "ndarray uint8 (2, 3)"
    assert shown(b"abc") == "bytes of length 3" and shown(object()) == "object"


CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.IvliteError)]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("value", HUGE[:4], ids=["long", "control", "surrogates", "separators"])
def test_every_error_is_short_whatever_it_says(kind, value):
    error = kind(f"first words {value} last words")
    assert len(str(error)) <= 500 and str(error).isprintable() and error.args == (str(error),)
    assert str(error).startswith("first words") and str(error).endswith("last words")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    str(error).encode()


def test_a_sentence_is_left_as_it_is():
    assert str(UsageError("short")) == "short" and str(UsageError()) == ""
    assert sentence("a" * 500) == "a" * 500 and len(sentence("a" * 501)) == 500
    assert sentence("two\nlines\tand\x1b") == "two\\nlines\\tand\\x1b"
    with decimal.localcontext() as context:
        context.prec = 3
        assert shown(Decimal("1.23456")) == "Decimal('1.23456')"


@pytest.mark.parametrize("arguments", [
    ["{}"], ["run", "{}", "hi"], ["run", "demo", "--fps", "{}"], ["run", "demo", "--{}"], ["run", "demo", "--image", "{}", "hi"],
    ["run", "demo", "--video", "data:video/mp4;base64,{}", "hi"], ["run", "demo", "--kv", "{}"], ["run", "demo", "--start", "{}"],
    ["calibrate", "demo", "--data", "{}", "-o", "s.gguf"], ["inspect", "{}"], ["verify", "{}"], ["quantize", "{}", "-o", "{}"],
])  # fmt: skip
@pytest.mark.parametrize("value", ["x" * 100_000, "\n\x1b[31m" * 20_000], ids=["long", "control"])
def test_the_command_line_answers_in_one_short_line(capfd, arguments, value):
    assert main([argument.format(value) for argument in arguments]) in (2, 3, 4)
    out, err = capfd.readouterr()
    assert out == "" and err.endswith("\n") and len(err) <= 520 and err[:-1].isprintable()
