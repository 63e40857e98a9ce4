"""JSON Schemas of the records. ``python -m usp_daemon.wire.schemas docs/schemas`` writes them to files."""

import pathlib
import sys
from typing import Any

import msgspec
import orjson

from ._records import SCHEMA_VERSION, Alarm, DeadLetter, Prediction, Symbol


class Tick(msgspec.Struct):
    """A tick as the daemon takes it by default; field names and the unit of time are configuration."""

    ts: int | float | str
    value: float | None
    symbol: Symbol


RECORDS: dict[str, type[msgspec.Struct]] = {
    "tick": Tick,
    "prediction": Prediction,
    "alarm": Alarm,
    "dead_letter": DeadLetter,
}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the record called ``name``, one of :data:`RECORDS`."""
    schema = msgspec.json.schema(RECORDS[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"usp-daemon {name.replace('_', ' ')} record, version {SCHEMA_VERSION}",
        **schema,
    }


def schema_bytes(name: str) -> bytes:
    """The text of the schema file for ``name``."""
    return orjson.dumps(json_schema(name), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write_schemas(directory: pathlib.Path) -> list[pathlib.Path]:
    """Write every schema to ``directory`` and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in RECORDS:
        path = directory / f"{name}.schema.json"
        path.write_bytes(schema_bytes(name))
        paths.append(path)
    return paths


if __name__ == "__main__":
    for written in write_schemas(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas")):
        print(written)
