"""Checks numeric arguments: Python, numpy and torch scalars, fractions and decimals, within a range. Formats times."""

import math
import operator
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real

from ivlite.errors import UsageError, shown

LARGEST = 1e12  # the limit of settings that state none


def whole(name, value, low=1, high=1 << 40):
    """`value` as an int from low to high; floats, fractions and decimals are accepted if they are whole.

    Accepts any scalar: numpy and torch scalars, 0-d arrays, objects with __index__. Raises UsageError that names the
    setting, also for bool, text, None and NaN.
    """
    plain = scalar(value)
    if isinstance(plain, Fraction) and plain.denominator == 1:
        plain = plain.numerator
    elif isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if not isinstance(plain, int) or not low <= plain <= high:
        raise UsageError(f"{name} is {shown(value)}; it must be a whole number from {low} to {high}")
    return plain


def number(name, value, low, high=None, above=False):
    """`value` as a float of at least `low` (with `above`: more than `low`) and at most `high` (None: LARGEST).

    Accepts what `whole` accepts, and values that are not whole. Raises UsageError that names the setting; NaN is never
    in range, and infinity only if `high` is infinite.
    """
    plain = scalar(value)
    good = plain is not None and low <= plain <= (LARGEST if high is None else high)
    if not good or (above and plain == low):
        limit = f"above {low}" if above else f"of at least {low}" if high is None else f"from {low}"
        limit += "" if high is None else f" and at most {high}" if above else f" to {high}"
        raise UsageError(f"{name} is {shown(value)}; it must be a number {limit}")
    return float(plain)


def scalar(value):
    """The value of a number of any library as int, float or Fraction; None for bool and non-numbers."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    try:
        if isinstance(value, Decimal):  # 1E+999999 as a Fraction has a million digits
            return Fraction(value) if value.is_finite() and abs(value.adjusted()) < 400 else float(value)
        if getattr(value, "shape", ()) != ():  # an array, even of one element
            return None
        if callable(getattr(value, "item", None)):  # numpy or torch; item() of some numpy types returns the same type
            inner = value.item()
            return scalar(float(value) if type(inner) is type(value) else inner)
        if hasattr(type(value), "__index__"):
            return operator.index(value)
        if isinstance(value, Rational):
            return Fraction(int(value.numerator), int(value.denominator))
        return float(value) if isinstance(value, Real) else None
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # the type only looks like a number
        return None


def is_finite(value):
    """Whether a value is a single finite number, of any library."""
    plain = scalar(value)
    return plain is not None and (isinstance(plain, int | Fraction) or math.isfinite(plain))


def jsonable(data):
    """Plain data with None in place of floats that are not finite, which JSON has not."""
    if isinstance(data, dict):
        return {key: jsonable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [jsonable(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def clock(seconds: float) -> str:
    """Formats a time in a video as "00:41:12.500", whatever the locale is."""
    thousandths = max(0, round(seconds * 1000))
    hours, rest = divmod(thousandths, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
