"""Other values in a TOML text, and not a character changed besides: comments, order, spacing and line ends stay."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from ._key import Value
from ._settings import SPECS


class EditError(Exception):
    """The text cannot be edited without changing more than was asked for."""


def edit_toml(content: bytes, changes: Mapping[str, Value]) -> bytes:
    """The bytes of the file with the values under the dotted paths of ``changes`` in place of those it has.

    A key that the file leaves out is added at the end of its section, a section at the end of the file. The result is
    read back with another parser and compared. Raises :class:`EditError`; ``content`` must be valid TOML.
    """
    mark = b"\xef\xbb\xbf" if content.startswith(b"\xef\xbb\xbf") else b""
    text = content[len(mark) :].decode("utf-8")
    expected = tomllib.loads(text)
    try:
        document = tomlkit.parse(text)
        if document.as_string() != text:
            raise EditError("the file cannot be reproduced as it is")
        for path, value in changes.items():
            section, _, name = path.partition(".")
            expected.setdefault(section, {})[name] = value
            if section not in document:
                document[section] = tomlkit.table()
            table: Any = document[section]
            former = table.get(name)
            table[name] = _item(value, "" if former is None else former.as_string())
    except (TOMLKitError, AttributeError, TypeError, KeyError) as error:
        raise EditError(f"the file cannot be edited: {error}") from error
    edited = document.as_string()
    try:
        is_right = tomllib.loads(edited) == expected
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise EditError("the edited file would say something else than it should")
    return mark + edited.encode("utf-8")


def _item(value: Value, former: str) -> Any:
    """The value as TOML, written like the one before it: thousands in groups where that had groups."""
    if isinstance(value, int) and not isinstance(value, bool) and (re.search(r"\d_\d", former) or value >= 10_000):
        return tomlkit.value(f"{value:_}")
    return tomlkit.item(value)


def as_toml(changes: Mapping[str, Value]) -> str:
    """The changes as a fragment of a file, for a person to copy."""
    lines: list[str] = []
    for section in dict.fromkeys(SPECS[path].section for path in changes):
        lines.append(f"[{section}]")
        for path, value in changes.items():
            if SPECS[path].section == section:
                lines.append(f"{SPECS[path].name} = {_item(value, '').as_string()}")
    return "\n".join(lines) + "\n"
