"""From a TOML file and the environment to checked settings, or to one error that names everything wrong with them."""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._cross_field import RULES
from ._key import KeySpec, Unfit, Value
from ._retired import RETIRED
from ._settings import SECTIONS, SPECS, Settings, build_settings

PREFIX = "USP_"
# Variables that name a place or steer the tests; they are no overrides.
OTHER_VARIABLES = frozenset(
    {"USP_CACHE_DIR", "USP_CONFIG", "USP_CRASH_AT", "USP_REQUIRE_KAFKA", "USP_REQUIRE_POSTGRES", "USP_STOP_AT"}
)

DEFAULT_LOCATION = Path("config/config.toml")
BUILT_IN = "built-in defaults"
ENVIRONMENT = "environment"

# Far above any honest file, far below what would fill the memory.
MAX_FILE_BYTES = 1 << 20

_SHOWN_CHARACTERS = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where it stands (a dotted path, variable or file), what was expected, what came, a hint."""

    path: str
    expected: str
    got: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: expected {self.expected}, got {self.got}"
        return f"{text} ({self.hint})" if self.hint else text


class ConfigError(Exception):
    """The configuration is refused as a whole: ``problems`` is everything wrong with it, ``source`` its file."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        text = "\n".join([f"{source}: {count}", *(f"  {problem}" for problem in self.problems)])
        super().__init__(text)


def find_config(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    """The file to load: ``path``, else ``$USP_CONFIG``, else ./config/config.toml if it is there, else None."""
    if path is not None:
        return Path(path)
    if environ.get("USP_CONFIG"):
        return Path(environ["USP_CONFIG"])
    return DEFAULT_LOCATION if DEFAULT_LOCATION.exists() else None


def load_settings(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the file that ``find_config`` finds and the overrides in ``environ`` (default: the process's).

    Raises ``ConfigError`` with every problem at once: unknown sections and keys, wrong types, values out of range or
    not finite, combinations that make no sense, unknown or unfit ``USP_*`` variables.
    """
    environ = os.environ if environ is None else environ
    found = find_config(path, environ)
    if found is None:
        return parse_settings({}, environ, source=BUILT_IN)
    return parse_settings(_read_document(found), environ, source=str(found))


def parse_settings(
    document: Mapping[str, Any], environ: Mapping[str, str] | None = None, *, source: str = "configuration"
) -> Settings:
    """Settings from a parsed ``document`` and the overrides in ``environ`` (default: none). Raises ``ConfigError``."""
    values, problems = _from_document(document)
    overrides, override_problems = _from_environment(environ or {})
    # an override replaces what the file says, right or wrong, but a file must be right by itself
    values.update(overrides)
    problems.extend(override_problems)
    complete = {path: spec.default for path, spec in SPECS.items()}
    refused = {problem.path for problem in problems}
    complete.update(values)
    judged = {path: value for path, value in complete.items() if path not in refused}
    for rule in RULES:
        if rule.is_broken_by(judged):
            shown = ", ".join(f"{path} = {_show_of(path, judged[path])}" for path in rule.paths)
            problems.append(Problem(rule.paths[0], rule.expectation, shown))
    if problems:
        raise ConfigError(source, problems)
    return build_settings(values)


def override_names(environ: Mapping[str, str]) -> list[str]:
    """The variables of ``environ`` that mean to override a key, sorted."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in OTHER_VARIABLES)


def _read_document(path: Path) -> dict[str, Any]:
    """The parsed file. Raises ``ConfigError`` where it cannot be read, is not UTF-8 or is not TOML."""

    def refuse(expected: str, got: str, hint: str = "") -> ConfigError:
        return ConfigError(str(path), [Problem(str(path), expected, got, hint)])

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise refuse("a readable file", reason.lower(), "name it with --config or USP_CONFIG") from error
    if len(content) > MAX_FILE_BYTES:
        raise refuse(f"at most {MAX_FILE_BYTES} bytes", "a larger file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refuse("UTF-8 text", f"byte 0x{content[error.start]:02x} at line {line}, offset {error.start}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refuse("valid TOML", _shorten(str(error))) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; tables nested thousands deep
        raise refuse("valid TOML", _shorten(str(error))) from error


def _from_document(document: Mapping[str, Any]) -> tuple[dict[str, Value], list[Problem]]:
    values: dict[str, Value] = {}
    problems: list[Problem] = []
    for section, table in document.items():
        if section not in SECTIONS:
            problems.append(_unknown_section(section, table))
        elif not isinstance(table, Mapping):
            problems.append(Problem(section, f"a section [{section}]", _show(table)))
        else:
            for name, value in table.items():
                path = f"{section}.{name}"
                spec = SPECS.get(path)
                if spec is None:
                    problems.append(Problem(_shorten(path), "a known key", "an unknown one", _meant(section, name)))
                    continue
                try:
                    values[path] = spec.fit(value)
                except Unfit:
                    problems.append(Problem(path, spec.expectation, _show_of(path, value)))
    return values, problems


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Value], list[Problem]]:
    values: dict[str, Value] = {}
    problems: list[Problem] = []
    for variable in override_names(environ):
        spec = _BY_VARIABLE.get(variable)
        if spec is None:
            close = difflib.get_close_matches(variable, _BY_VARIABLE, n=1, cutoff=0.75)
            hint = f"did you mean {close[0]}?" if close else ""
            problems.append(Problem(_shorten(variable), "USP_SECTION__KEY of a known key", "an unknown one", hint))
            continue
        try:
            values[spec.path] = spec.parse(environ[variable])
        except Unfit:
            # under the path as well, so that no rule judges the value that the file gave
            shown = _show_of(spec.path, environ[variable])
            problems.append(Problem(spec.path, spec.expectation, shown, f"from {variable}"))
    return values, problems


_BY_VARIABLE: dict[str, KeySpec] = {spec.variable: spec for spec in SPECS.values()}


def _unknown_section(section: str, table: object) -> Problem:
    kind = "section" if isinstance(table, Mapping) else "key outside any section"
    close = difflib.get_close_matches(section, SECTIONS, n=1)
    hint = f"did you mean [{close[0]}]?" if close else "sections: " + ", ".join(SECTIONS)
    if not isinstance(table, Mapping):
        places = [spec.section for spec in SPECS.values() if spec.name == section]
        hint = f"it belongs in [{places[0]}]" if places else hint
    return Problem(_shorten(section), "a known section", f"an unknown {kind}", hint)


def _meant(section: str, name: str) -> str:
    """What somebody who wrote ``name`` into ``section`` may have meant, or ""."""
    if name in RETIRED:
        return RETIRED[name]
    places = [spec.section for spec in SPECS.values() if spec.name == name]
    if places:
        return f"it belongs in [{places[0]}]"
    neighbours = [spec.name for spec in SPECS.values() if spec.section == section]
    close = difflib.get_close_matches(name, neighbours, n=1)
    if close:
        return f"did you mean {close[0]}?"
    everywhere = {spec.name: spec.path for spec in SPECS.values()}
    close = difflib.get_close_matches(name, everywhere, n=1, cutoff=0.75)
    return f"did you mean {everywhere[close[0]]}?" if close else ""


def _show_of(path: str, value: object) -> str:
    """The value under ``path`` as a message shows it; a secret's is not."""
    return "a secret value" if SPECS[path].key.secret and value else _show(value)


def _show(value: object) -> str:
    """The value as a message shows it: short, on one line, with its type where that is the point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print thousands of digits
        return f"a whole number of {value.bit_length()} bits"
    return _shorten(repr(value) if isinstance(value, str) else str(value))


def _shorten(text: str) -> str:
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return printable if len(printable) <= _SHOWN_CHARACTERS else printable[: _SHOWN_CHARACTERS - 3] + "..."
