"""JSON Schema of ``/status.json``. ``python -m usp_daemon.status.schema docs/schemas`` writes it to its file."""

import pathlib
import sys
from typing import Any

import msgspec
import orjson

from ._document import SCHEMA_VERSION, Status

SCHEMA_FILE = "status.schema.json"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"usp-daemon status, version {SCHEMA_VERSION}",
        **msgspec.json.schema(Status),
    }


def schema_bytes() -> bytes:
    """The text of the schema's file."""
    return orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SCHEMA_FILE).write_bytes(schema_bytes())
    print(directory / SCHEMA_FILE)
