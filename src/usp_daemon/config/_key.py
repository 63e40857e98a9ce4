"""What may be said of one configuration key, and whether a value fits it.

A section is a frozen dataclass; each attribute carries a ``Key`` in its annotation. That table is the only source: the
loader, ``config/config.toml`` and ``docs/configuration.md`` all come from it.
"""

import dataclasses
import enum
import math
import re
import types
import typing

Value = float | int | bool | str


class ParameterClass(enum.StrEnum):
    """What a change of the key costs while the daemon runs."""

    TRACED = "traced"  # nothing: the value is an array leaf of the compiled program
    STRUCTURAL = "structural"  # a compilation in the background, then states migrate and programs swap
    LOCKED = "locked"  # refused while running: it needs a restart


class Reader(enum.StrEnum):
    """Which part of the daemon acts on the key."""

    PREDICTOR = "predictor"  # a field of core's PredictorConfig, under the same name
    PIPELINE = "pipeline"  # everything between a record and the predictor
    SERVICE = "service"  # only the long-running service
    TUNER = "tuner"  # only the tuner


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Meaning, unit, range and class of one key. ``unit`` is "" where the number has none."""

    meaning: str
    parameter_class: ParameterClass
    reader: Reader
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above_low: bool = False  # ``low`` itself is refused
    choices: tuple[str, ...] = ()
    pattern: str = ""
    pattern_meaning: str = ""
    power_of_two: bool = False
    multiple_of: int = 0
    auto: bool = False  # the word "auto" stands for a value worked out from the others
    may_be_empty: bool = False
    secret: bool = False  # never shown, logged, hashed or stored


def traced(
    meaning: str,
    unit: str,
    low: float,
    high: float,
    *,
    above_low: bool = False,
    power_of_two: bool = False,
    auto: bool = False,
    reader: Reader = Reader.PREDICTOR,
) -> Key:
    """A number between ``low`` and ``high`` that may change at no cost."""
    return Key(
        meaning=meaning,
        parameter_class=ParameterClass.TRACED,
        reader=reader,
        unit=unit,
        low=low,
        high=high,
        above_low=above_low,
        power_of_two=power_of_two,
        auto=auto,
    )


def structural(
    meaning: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[str, ...] = (),
    power_of_two: bool = False,
) -> Key:
    """A number or a word that fixes a shape or picks a program."""
    return Key(
        meaning=meaning,
        parameter_class=ParameterClass.STRUCTURAL,
        reader=Reader.PREDICTOR,
        unit=unit,
        low=low,
        high=high,
        choices=choices,
        power_of_two=power_of_two,
    )


def locked(
    meaning: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    *,
    reader: Reader = Reader.PIPELINE,
    above_low: bool = False,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    pattern_meaning: str = "",
    multiple_of: int = 0,
    auto: bool = False,
    may_be_empty: bool = False,
) -> Key:
    """A value that stands for the whole life of the process."""
    return Key(
        meaning=meaning,
        parameter_class=ParameterClass.LOCKED,
        reader=reader,
        unit=unit,
        low=low,
        high=high,
        above_low=above_low,
        choices=choices,
        pattern=pattern,
        pattern_meaning=pattern_meaning,
        multiple_of=multiple_of,
        auto=auto,
        may_be_empty=may_be_empty,
    )


def secret(meaning: str, *, reader: Reader) -> Key:
    """A text that must not be seen: better given through the environment than in a file."""
    return Key(
        meaning=meaning,
        parameter_class=ParameterClass.LOCKED,
        reader=reader,
        may_be_empty=True,
        secret=True,
    )


class Unfit(Exception):
    """The value does not fit the key."""


@dataclasses.dataclass(frozen=True, slots=True)
class KeySpec:
    """One key in its place: ``path`` is "section.name", ``kind`` one of float, int, bool and str."""

    section: str
    name: str
    kind: type
    default: Value
    key: Key

    @property
    def path(self) -> str:
        """The dotted path under which messages name the key."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that overrides the key."""
        return f"USP_{self.section}__{self.name}".upper()

    @property
    def range_text(self) -> str:
        """The permitted values in words: "0.1 to 10", "a power of two, 64 to 512", "true or false"."""
        key = self.key
        if self.kind is bool:
            return "true or false"
        if key.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in key.choices)
        if key.pattern:
            return key.pattern_meaning
        if self.kind is str:
            return "any printable text" + (", may be empty" if key.may_be_empty else "")
        text = "any"
        if key.low is not None and key.high is not None:
            text = f"{_number(key.low)} to {_number(key.high)}"
            if key.above_low:
                text = f"above {_number(key.low)}, at most {_number(key.high)}"
        if key.power_of_two:
            text = f"a power of two, {text}"
        if key.multiple_of:
            text = f"a multiple of {key.multiple_of}, {text}"
        return f'"auto" or {text}' if key.auto else text

    @property
    def expectation(self) -> str:
        """What a message says was expected."""
        if self.kind is bool or self.kind is str:
            return self.range_text
        noun = "a whole number" if self.kind is int else "a number"
        key = self.key
        bounds = f"from {_number(key.low)} to {_number(key.high)}"
        if key.above_low:
            bounds = f"above {_number(key.low)} and at most {_number(key.high)}"
        text = f"{noun} {bounds}"
        if key.power_of_two:
            text += " that is a power of two"
        if key.multiple_of:
            text += f" that is a multiple of {key.multiple_of}"
        return f'"auto" or {text}' if key.auto else text

    def fit(self, value: object) -> Value:
        """The value in the key's own type. Raises ``Unfit`` for a wrong type, out of range, or not finite."""
        if self.key.auto and value == "auto":
            return "auto"
        if self.kind is bool:
            return _require(isinstance(value, bool), value)
        if self.kind is str:
            return self._fit_text(value)
        # bool is an int to Python, not to whoever writes a configuration
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unfit
        if self.kind is int and not isinstance(value, int):
            raise Unfit
        self._require_in_range(value)
        if self.kind is int:
            return value
        return float(value) + 0.0  # no negative zero: equal settings have equal hashes

    def parse(self, text: str) -> Value:
        """The value that ``text``, an environment variable, stands for. Raises ``Unfit``."""
        if self.kind is str or (self.key.auto and text == "auto"):
            return self.fit(text)
        try:
            if self.kind is bool:
                return self.fit({"true": True, "false": False}[text.strip().lower()])
            return self.fit(int(text) if self.kind is int else float(text))
        except (KeyError, ValueError):
            raise Unfit from None

    def _fit_text(self, value: object) -> str:
        key = self.key
        if not isinstance(value, str) or not value.isprintable() or not (value or key.may_be_empty):
            raise Unfit
        if key.choices and value not in key.choices:
            raise Unfit
        if key.pattern and re.fullmatch(key.pattern, value) is None:
            raise Unfit
        return value

    def _require_in_range(self, value: int | float) -> None:
        key = self.key
        # whole numbers are compared as they are: 10**400 is no float
        if isinstance(value, float) and not math.isfinite(value):
            raise Unfit
        if key.low is not None and (value < key.low or (key.above_low and value == key.low)):
            raise Unfit
        if key.high is not None and value > key.high:
            raise Unfit
        if key.power_of_two and int(value).bit_count() != 1:
            raise Unfit
        if key.multiple_of and value % key.multiple_of:
            raise Unfit


def _require(holds: bool, value: typing.Any) -> typing.Any:
    if not holds:
        raise Unfit
    return value


def _number(value: float | None) -> str:
    """Shortest form that reads well: 1000000 rather than 1e+06, 1e-08 rather than 0.00000001."""
    if value is None:
        return "any"
    if float(value).is_integer() and abs(value) < 1e18:
        return str(int(value))
    return f"{value:g}"


def specs_of(section: str, record: type) -> tuple[KeySpec, ...]:
    """The keys of one section, in the order in which the record declares them."""
    hints = typing.get_type_hints(record, include_extras=True)
    return tuple(
        KeySpec(
            section, field.name, _kind(hints[field.name]), typing.cast(Value, field.default), _key(hints[field.name])
        )
        for field in dataclasses.fields(record)
    )


def _key(hint: typing.Any) -> Key:
    (key,) = hint.__metadata__
    return key


def _kind(hint: typing.Any) -> type:
    bare = hint.__origin__
    if isinstance(bare, types.UnionType) or typing.get_origin(bare) is typing.Union:
        # a number, or the word "auto"
        (bare,) = (part for part in typing.get_args(bare) if typing.get_origin(part) is not typing.Literal)
    return bare
