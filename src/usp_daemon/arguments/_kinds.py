"""Kinds of arguments: each takes the text and returns the value, or says what was expected."""

import argparse
import math


def speed(text: str) -> float | None:
    """A positive number, or None for ``max``."""
    if text == "max":
        return None
    number = float(text)
    if not (number > 0.0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"expected a positive number or max, got {text}")
    return number


def positive(text: str) -> int:
    """A whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def natural(text: str) -> int:
    """A whole number, at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, got {text}")
    return number


def wait(text: str) -> float:
    """Seconds, 0 or more."""
    number = float(text)
    if not (number >= 0.0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text}")
    return number


def seconds(text: str) -> float:
    """Seconds, more than 0."""
    number = float(text)
    if not (number > 0.0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text}")
    return number


def name(text: str) -> str:
    """A text that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name")
    return text
