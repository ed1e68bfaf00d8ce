"""Numbers as people hand them over: Python's, numpy's, torch's, fractions and decimals, checked against a range."""

import math
import operator
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real

from ivlite.errors import UsageError, shown

LARGEST = 1e12  # of settings without a limit of their own: beyond it is a mistake


def whole(name, value, low=1, high=1 << 40):
    """`value` as an int from low to high; floats, fractions and decimals count where they are whole.

    Takes whatever has the value of one number: numpy and torch scalars, arrays of no dimension, anything with
    __index__. Raises UsageError (for bool, text, None, NaN and the like as well), naming the setting.
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
    """`value` as a float of at least `low` (with `above`: more than it) and at most `high`, None for no stated limit.

    Takes what `whole` takes and fractions of every kind. Raises UsageError, naming the setting; NaN is never in range,
    and infinity only where `high` is.
    """
    plain = scalar(value)
    good = plain is not None and low <= plain <= (LARGEST if high is None else high)
    if not good or (above and plain == low):
        limit = f"above {low}" if above else f"of at least {low}" if high is None else f"from {low}"
        limit += "" if high is None else f" and at most {high}" if above else f" to {high}"
        raise UsageError(f"{name} is {shown(value)}; it must be a number {limit}")
    return float(plain)


def scalar(value):
    """The int, float or Fraction that a number of any library stands for; None for bool and what is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    try:
        if isinstance(value, Decimal):  # as a fraction 1E+999999 has a million digits
            return Fraction(value) if value.is_finite() and abs(value.adjusted()) < 400 else float(value)
        if getattr(value, "shape", ()) != ():  # an array that holds one number is still an array
            return None
        if callable(getattr(value, "item", None)):  # of numpy or torch; some types of numpy give themselves
            inner = value.item()
            return scalar(float(value) if type(inner) is type(value) else inner)
        if hasattr(type(value), "__index__"):
            return operator.index(value)
        if isinstance(value, Rational):
            return Fraction(int(value.numerator), int(value.denominator))
        return float(value) if isinstance(value, Real) else None
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # of a type that only looks like a number
        return None


def is_finite(value):
    """Whether a value is one finite number of any library."""
    plain = scalar(value)
    return plain is not None and (isinstance(plain, int | Fraction) or math.isfinite(plain))
