"""What is generated from the schema: config/config.toml, docs/configuration.md and docs/errata/configuration.md."""

import textwrap

from ._cross_field import RULES
from ._key import KeySpec, ParameterClass, Reader, Value
from ._retired import CHANGED, RETIRED
from ._settings import SECTIONS, SPECS

_WIDTH = 110

_ACTS = {
    Reader.SERVICE: "Read by the service.",
    Reader.TUNER: "Read by the tuner.",
}

_TOML_HEAD = """\
# Configuration of usp-daemon. Every key is here at its default; a key that is left out has it too.
#
# Each key states its meaning, unit, range and class:
#   traced      a change takes effect between two ticks and costs nothing
#   structural  a change compiles another program in the background and then swaps
#   locked      a change needs a restart
# "Read by the service" and "read by the tuner" mark what replay and demo do not look at.
#
# An environment variable USP_SECTION__KEY overrides a key, for example USP_ORCHESTRATION__CUSUM_K=0.7.
# usp-daemon check-config says whether a file is right, and names everything that is wrong with it at once.
# This file is generated: edit the schema in src/usp_daemon/config and run make docs.
"""

_DOCS_HEAD = """\
# Configuration

<!-- Generated from the schema by `make docs`. Do not edit. -->

`usp-daemon` reads one TOML file: the one given with `--config`, else the one that `$USP_CONFIG` names, else
`config/config.toml` below the working directory. Without any, the defaults below stand. A key that is left out takes
its default.

An environment variable `USP_SECTION__KEY` overrides a key: `USP_ORCHESTRATION__CUSUM_K=0.7` sets
`orchestration.cusum_k`. Numbers are written as in TOML, truth values as `true` or `false`.

A configuration is accepted whole or refused whole. Unknown sections and keys, wrong types, values out of range or not
finite, combinations that make no sense and unknown `USP_` variables are all named together, each with its path, what
was expected and what came. `usp-daemon check-config` does only that.

The class says what a change costs while the daemon runs:

| class | cost of a change |
|---|---|
| traced | none: it takes effect between two ticks |
| structural | another program is compiled in the background, states migrate, then the programs swap |
| locked | a restart |

Where nothing else is said, a number has no unit. "sd" is a standard deviation of the standardised series.
"""

_ERRATA_HEAD = """\
# Errata: configuration

<!-- Generated from the schema by `make docs`. Do not edit. -->

The specification's reference declares 93 fields, of which most are never read, some twice under two names. Here each
key acts, and under one name. `tests/config/test_against_predictor.py` holds that the keys and the predictor's
parameters are the same, `tests/config/test_specification_keys.py` that no key of the specification is lost.

"""


def default_toml() -> str:
    """The commented configuration file with every key at its default."""
    parts = [_TOML_HEAD]
    for section, record in SECTIONS.items():
        parts.append(f"\n# {(record.__doc__ or '').strip()}\n[{section}]\n")
        for spec in _specs_in(section):
            comment = f"{spec.key.meaning} {_facts(spec)}"
            lines = textwrap.wrap(comment, _WIDTH, break_long_words=False, break_on_hyphens=False)
            parts.append("".join(f"# {line}\n" for line in lines))
            parts.append(f"{spec.name} = {_toml(spec.default)}\n\n")
    return "".join(parts).rstrip("\n") + "\n"


def configuration_page() -> str:
    """The reference of all keys in Markdown."""
    parts = [_DOCS_HEAD]
    for section, record in SECTIONS.items():
        parts.append(f"\n## [{section}]\n\n{(record.__doc__ or '').strip()}\n\n")
        parts.append("| key | default | unit | range | class | meaning |\n|---|---|---|---|---|---|\n")
        for spec in _specs_in(section):
            meaning = " ".join(filter(None, (spec.key.meaning, _ACTS.get(spec.key.reader))))
            cells = (
                f"`{spec.name}`",
                f"`{_toml(spec.default)}`",
                spec.key.unit,
                spec.range_text,
                spec.key.parameter_class.value,
                meaning,
            )
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    parts.append("\n## Combinations\n\nBeside its own range, each of these must hold:\n\n")
    parts.extend(f"- `{rule.paths[0]}` is {rule.expectation}\n" for rule in RULES)
    return "".join(parts)


def errata_page() -> str:
    """What became of the specification's keys, in Markdown."""
    parts = [_ERRATA_HEAD, "## Keys that are gone\n\n| key | what became of it |\n|---|---|\n"]
    parts.extend(f"| `{name}` | {fate} |\n" for name, fate in RETIRED.items())
    parts.append("\n## Keys that mean something else\n\n| key | what differs, and why |\n|---|---|\n")
    parts.extend(f"| `{path}` | {reason} |\n" for path, reason in CHANGED.items())
    return "".join(parts)


def _specs_in(section: str) -> list[KeySpec]:
    return [spec for spec in SPECS.values() if spec.section == section]


def _facts(spec: KeySpec) -> str:
    unit = f"Unit: {spec.key.unit}. " if spec.key.unit else ""
    acts = f" {_ACTS[spec.key.reader]}" if spec.key.reader in _ACTS else ""
    return f"{unit}Range: {spec.range_text}. Class: {ParameterClass(spec.key.parameter_class).value}.{acts}"


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else repr(value)
