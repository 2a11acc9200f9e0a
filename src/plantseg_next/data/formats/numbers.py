"""Numbers in the files of annotation tools: finite, and small enough for an image.

JSON as Python reads it, XML and text may state NaN, infinity, or more digits than any
image has pixels. They are refused here, in words, before they are converted or drawn.
"""

import math
import re
from collections.abc import Iterable
from numbers import Real

import numpy as np
from jaxtyping import Float

LARGEST = 2**31 - 1
"""Largest coordinate, size or id: what a signed integer of 32 bits holds."""
SHOWN = 40
"""Letters of a value that are shown in an error."""

_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


def finite(value: object, what: str) -> float:
    """Return a finite number of at most ``LARGEST``, whichever its sign.

    Args:
        value: A number, or its text in decimal digits.
        what: What it is, for the error: "x of point 3".

    Raises:
        ValueError: If it is no number, NaN, infinite or too large. ``True`` is no number.

    Example:
        >>> finite("1.5e2", "x"), finite(3, "y")
        (150.0, 3.0)
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not (is_number or (isinstance(value, str) and _NUMBER.fullmatch(value))):
        raise ValueError(f"{what} is {shown(value)}, not a finite number")
    try:
        number = float(value)  # type: ignore[arg-type] # a number or its text, as above
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        raise ValueError(f"{what} is NaN, not a finite number")
    if abs(number) > LARGEST:
        raise ValueError(f"{what} is {shown(value)}, beyond {LARGEST:,}")
    return number


def finite_array(values: Iterable[object], what: str) -> Float[np.ndarray, " n"]:
    """Return many numbers, each as ``finite`` returns it.

    Args:
        values: Numbers, or their texts.
        what: What they are, for the error: "the outline".

    Raises:
        ValueError: If one of them is refused; it is named by its place, from 1.

    Example:
        >>> finite_array(["1", 2, 3.5], "the outline").tolist()
        [1.0, 2.0, 3.5]
    """
    values = list(values)
    if set(map(type, values)) <= {int, float} and all(
        -LARGEST <= value <= LARGEST  # type: ignore[operator] # NaN is not in the range
        for value in values
    ):
        return np.array(values, float)
    numbers = [finite(v, f"number {i} of {what}") for i, v in enumerate(values, 1)]
    return np.array(numbers, float)


def whole(value: object, what: str, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number; ``3.0`` and ``"3"`` are 3.

    Args:
        value: A number, or its text in decimal digits.
        what: What it is, for the error: "the height".
        least: Smallest valid number.
        most: Largest valid number.

    Raises:
        ValueError: If it is no whole number, or out of range.

    Example:
        >>> whole("640", "the width", least=1)
        640
    """
    # Not by way of float: beyond 2**53 it would be another number.
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif (as_float := finite(value, what)).is_integer():
        number = int(as_float)
    else:
        raise ValueError(f"{what} is {shown(value)}, not a whole number")
    if not least <= number <= most:
        raise ValueError(f"{what} is {shown(value)}, not {least:,} to {most:,}")
    return number


def shown(value: object) -> str:
    """Return a value as short text for an error, whatever it is.

    Example:
        >>> shown("a" * 100)
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, dict | list | tuple):  # its text may be as long as the file
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
