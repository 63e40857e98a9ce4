"""Timestamps as they are written, turned into Unix nanoseconds exactly: no detour through a binary fraction."""

import datetime
import enum
import re

MAX_TIMESTAMP_NS = 2**63 - 1


class TimeUnit(enum.StrEnum):
    """How a tick's time is written: a count since 1970-01-01 UTC in one of four units, or an ISO 8601 date and time."""

    NANOSECONDS = "ns"
    MICROSECONDS = "us"
    MILLISECONDS = "ms"
    SECONDS = "s"
    ISO8601 = "iso8601"

    @property
    def digits(self) -> int:
        """Decimal places between this unit and nanoseconds (9 for ISO 8601, whose seconds are the unit)."""
        return {"ns": 0, "us": 3, "ms": 6, "s": 9, "iso8601": 9}[self.value]


class TimestampError(ValueError):
    """A text or number that is no time in the unit given."""


_DECIMAL = re.compile(r"([+-]?)(\d{1,40})(?:\.(\d*))?(?:[eE]([+-]?\d{1,3}))?\Z", re.ASCII)
_ISO_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d+)", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


def nanoseconds_from_decimal(text: str, digits: int) -> int:
    """``text`` (a decimal number, perhaps with an exponent) times ``10 ** digits``, cut toward zero."""
    match = _DECIMAL.match(text.strip())
    if match is None:
        raise TimestampError(f"expected a number, got {shortened(text)!r}")
    sign, whole, fraction, exponent = match.groups()
    fraction = fraction or ""
    shift = digits + int(exponent or 0) - len(fraction)
    mantissa = int(whole + fraction)
    magnitude = mantissa * 10**shift if shift >= 0 else mantissa // 10**-shift
    return -magnitude if sign == "-" else magnitude


def nanoseconds_from_iso8601(text: str) -> int:
    """An ISO 8601 date and time as nanoseconds; without an offset it is UTC, and digits past the ninth are cut."""
    stripped = text.strip()
    fraction = _ISO_FRACTION.search(stripped)
    nanoseconds = 0
    if fraction is not None:
        nanoseconds = int(fraction.group(1)[:9].ljust(9, "0"))
        stripped = stripped[: fraction.start()] + stripped[fraction.end() :]
    try:
        moment = datetime.datetime.fromisoformat(stripped)
    except ValueError:
        raise TimestampError(f"expected an ISO 8601 date and time, got {shortened(text)!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // _MICROSECOND * 1000 + nanoseconds


def nanoseconds_from_number(number: int | float, unit: TimeUnit) -> int:
    """A JSON number in ``unit`` as nanoseconds, by its shortest decimal form, so that 0.08 s is 80,000,000 ns."""
    if isinstance(number, int):
        return number * 10**unit.digits
    if number != number or number in (float("inf"), float("-inf")):
        raise TimestampError(f"expected a finite number, got {number}")
    return nanoseconds_from_decimal(repr(number), unit.digits)


def nanoseconds_from_text(text: str, unit: TimeUnit) -> int:
    """A cell of a CSV file in ``unit`` as nanoseconds."""
    if unit is TimeUnit.ISO8601:
        return nanoseconds_from_iso8601(text)
    if len(text) <= 20 and text.isascii() and text.isdigit():
        return int(text) * 10**unit.digits
    return nanoseconds_from_decimal(text, unit.digits)


def plausible_unit(number: float) -> TimeUnit | None:
    """The unit in which ``number`` falls between 1980 and 2100; None when no unit does (an index, say)."""
    for unit in (TimeUnit.SECONDS, TimeUnit.MILLISECONDS, TimeUnit.MICROSECONDS, TimeUnit.NANOSECONDS):
        seconds = number / 10.0 ** (9 - unit.digits)
        if 315_532_800.0 <= seconds < 4_102_444_800.0:
            return unit
    return None


def shortened(text: str, limit: int = 60) -> str:
    """At most ``limit`` characters of ``text``, for a message."""
    return text if len(text) <= limit else f"{text[:limit]}..."
