"""From a TOML file and the environment to checked settings, or to one error that names everything wrong with them."""

import dataclasses
import difflib
import os
import stat
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ._cross_field import RULES
from ._key import KeySpec, Unfit, Value
from ._retired import RETIRED
from ._settings import SECTIONS, SPECS, Settings, build_settings

PREFIX = "USP_"
# Variables that name a place or steer the tests; they are no overrides.
OTHER_VARIABLES = frozenset({"USP_CACHE_DIR", "USP_CONFIG", "USP_CRASH_AT", "USP_STOP_AT"})
OTHER_PREFIX = "USP_REQUIRE_"

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
    values, problems = values_of_document(document)
    overrides, override_problems = values_of_environment(environ or {})
    # an override replaces what the file says, right or wrong, but a file must be right by itself
    values.update(overrides)
    problems.extend(override_problems)
    problems.extend(broken_rules(values, refused={problem.path for problem in problems}))
    if problems:
        raise ConfigError(source, problems)
    return build_settings(values)


def broken_rules(values: Mapping[str, Value], *, refused: Collection[str] = ()) -> list[Problem]:
    """One problem for each combination in ``values`` and the defaults that makes no sense.

    ``refused`` are paths whose values are wrong by themselves already, so that no rule judges them.
    """
    complete = {path: spec.default for path, spec in SPECS.items()}
    complete.update(values)
    judged = {path: value for path, value in complete.items() if path not in refused}
    problems = []
    for rule in RULES:
        if rule.is_broken_by(judged):
            shown = ", ".join(f"{path} = {show_of(path, judged[path])}" for path in rule.paths)
            problems.append(Problem(rule.paths[0], rule.expectation, shown))
    return problems


def override_names(environ: Mapping[str, str]) -> list[str]:
    """The variables of ``environ`` that mean to override a key, sorted."""
    names = (name for name in environ if name.startswith(PREFIX) and not name.startswith(OTHER_PREFIX))
    return sorted(name for name in names if name not in OTHER_VARIABLES)


def read_content(path: Path) -> bytes:
    """The bytes of the file. Raises ``ConfigError`` where it cannot be read or is larger than any honest one.

    It never waits: what is no regular file is refused, since opening a pipe would wait for its writer.
    """
    try:
        # a file that is opened for reading without waiting: for a regular one this makes no difference
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _refuse(path, "a regular file", "something else", "a directory, a pipe or a device")
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error) from error
    return _of_honest_size(path, content)


def parse_content(content: bytes, path: Path) -> dict[str, Any]:
    """The parsed bytes of the file ``path``. Raises ``ConfigError`` where they are not UTF-8 or not TOML."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{content[error.start]:02x} at line {line}, offset {error.start}"
        raise _refuse(path, "UTF-8 text", got) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refuse(path, "valid TOML", _shorten(str(error))) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; tables nested thousands deep
        raise _refuse(path, "valid TOML", _shorten(str(error))) from error


def _read_document(path: Path) -> dict[str, Any]:
    """The parsed file, which may be a pipe here. Raises ``ConfigError``."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return parse_content(_of_honest_size(path, content), path)


def _of_honest_size(path: Path, content: bytes) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise _refuse(path, f"at most {MAX_FILE_BYTES} bytes", "a larger file")
    return content


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return _refuse(path, "a readable file", reason.lower(), "name it with --config or USP_CONFIG")


def _refuse(path: Path, expected: str, got: str, hint: str = "") -> ConfigError:
    return ConfigError(str(path), [Problem(str(path), expected, got, hint)])


def values_of_document(document: Mapping[str, Any]) -> tuple[dict[str, Value], list[Problem]]:
    """The values of a parsed file by dotted path, and everything that is wrong with it by itself."""
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
                    problems.append(Problem(path, spec.expectation, show_of(path, value)))
    return values, problems


def values_of_environment(environ: Mapping[str, str]) -> tuple[dict[str, Value], list[Problem]]:
    """The overrides in ``environ`` by dotted path, and everything that is wrong with them."""
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
            shown = show_of(spec.path, environ[variable])
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


def show_of(path: str, value: object) -> str:
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
