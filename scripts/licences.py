#!/usr/bin/env python3
"""Writes docs/licences.md from what is installed of requirements.lock, or with --check says whether it is still so.

python scripts/licences.py [--check]      with the interpreter of a virtual environment that has the lock installed
"""

import argparse
import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PAGE = ROOT / "docs" / "licences.md"

# Identifiers of SPDX. Permissive ones, and MPL-2.0, which binds changes of its own files only; none is changed here.
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "MIT", "MPL-2.0", "PSF-2.0", "Zlib"),
}
# What stands in metadata of before SPDX.
SPELLINGS = {
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "license :: osi approved :: apache software license": "Apache-2.0",
    "license :: osi approved :: mit license": "MIT",
    "mit license": "MIT",
}
# Read by hand where the metadata says no more than "BSD License".
READ = {"scipy": "BSD-3-Clause"}

HEAD = """\
# Licences of what comes along

`usp-daemon` is under the MIT licence. This page lists what `requirements.lock` installs on Linux, and so what a
container image has in it besides Python and Debian. It is written by `python scripts/licences.py`;
`tests/deploy/test_licences.py` fails when it is no longer so, or when a licence is none of: {allowed}.

MPL-2.0 binds whoever changes files under it, and nothing here is changed. The wheels of NumPy and SciPy carry OpenBLAS
(BSD-3-Clause) and two runtime libraries of GCC, each a file of its own that may be replaced: libgfortran (GPL-3.0 with
the runtime library exception) and libquadmath (LGPL-2.1-or-later); the texts lie in each package's `dist-info`, which
the image keeps.
`requirements-cuda.lock` adds NVIDIA's libraries under NVIDIA's own licences, which must be read before an image of the
target `cuda` is passed on; they are in no other image. The bundled series have their own licences in
`src/usp_daemon/demo/data/LICENSES.md`.

`make sbom` writes a bill of materials, CycloneDX, with versions and hashes.

| package | version | licence |
|---|---|---|
"""


class UnknownLicenceError(Exception):
    """The metadata of a package names no licence that is known here; the text says what they have."""


def installed() -> list[Requirement]:
    """The requirements of the lock that hold on this platform."""
    found = []
    for line in LOCK.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(re.split(r"\s--hash=", line.strip())[0].strip())
            if requirement.marker is None or requirement.marker.evaluate():
                found.append(requirement)
    return found


def licence_of(name: str) -> str:
    """The SPDX expression of an installed package. Raises :class:`UnknownLicenceError`."""
    metadata = importlib.metadata.metadata(name)
    if metadata.get("License-Expression"):
        return metadata["License-Expression"]
    if name in READ:
        return READ[name]
    text = (metadata.get("License") or "").strip()
    first = text.splitlines()[0].strip() if text else ""
    named = [entry for entry in metadata.get_all("Classifier") or [] if entry.startswith("License ::")]
    for candidate in (text, first, *(named if len(named) == 1 else ())):
        known = SPELLINGS.get(candidate.lower(), candidate)
        if identifiers(known) and identifiers(known) <= ALLOWED:
            return known
    raise UnknownLicenceError(f"{name}: {first!r}, {named}; read its licence, then add it to READ or SPELLINGS")


def identifiers(expression: str) -> set[str]:
    """The identifiers in an SPDX expression."""
    return set(re.split(r"[\s()]+|\bAND\b|\bOR\b|\bWITH\b", expression)) - {""}


def is_allowed(expression: str) -> bool:
    """Whether an expression of AND, OR and parentheses is granted by ``ALLOWED``."""
    return _any_of(re.findall(r"\(|\)|[^\s()]+", expression))


def _any_of(words: list[str]) -> bool:
    granted = _all_of(words)
    while words and words[0] == "OR":
        del words[0]
        granted = _all_of(words) or granted
    return granted


def _all_of(words: list[str]) -> bool:
    granted = _term(words)
    while words and words[0] == "AND":
        del words[0]
        granted = _term(words) and granted
    return granted


def _term(words: list[str]) -> bool:
    word = words.pop(0)
    if word != "(":
        return word in ALLOWED
    granted = _any_of(words)
    del words[0]
    return granted


def page() -> str:
    """The text of docs/licences.md. Raises :class:`UnknownLicenceError`."""
    rows = [
        f"| {each.name} | {str(each.specifier).removeprefix('==')} | {licence_of(each.name)} |" for each in installed()
    ]
    return HEAD.format(allowed=", ".join(sorted(ALLOWED))) + "\n".join(rows) + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="write nothing; exit status 1 where it would change")
    chosen = options.parse_args()
    try:
        text = page()
    except UnknownLicenceError as error:
        print(f"licences: {error}", file=sys.stderr)
        return 1
    refused = [each.name for each in installed() if not is_allowed(licence_of(each.name))]
    if refused:
        print(f"licences: not allowed: {', '.join(refused)}", file=sys.stderr)
        return 1
    if chosen.check:
        return 0 if PAGE.read_text("utf-8") == text else 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
