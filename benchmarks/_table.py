"""The one table that every benchmark prints: a figure to reach beside the measured one."""

import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: its name, the figure to reach as text, the measured value, its unit and a remark."""

    name: str
    figure_to_reach: str
    measured: float | str
    unit: str = ""
    note: str = ""


def number(value: float | str) -> str:
    """A measured value as text: thousands grouped, otherwise four significant digits."""
    if isinstance(value, str):
        return value
    if value != value:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_columns(header: Sequence[str], lines: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Plain aligned columns; the first ``left`` of them start at the left, the others end at the right."""
    table = [list(header), *[list(line) for line in lines]]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def format_rows(rows: Iterable[Row]) -> str:
    """The rows as one plain-text table, in the order given."""
    lines = [(row.name, row.figure_to_reach, number(row.measured), row.unit, row.note) for row in rows]
    table = [("what", "to reach", "measured", "unit", "note"), *lines]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    text = [
        f"{name:<{widths[0]}}  {target:>{widths[1]}}  {measured:>{widths[2]}}  {unit:<{widths[3]}}  {note}".rstrip()
        for name, target, measured, unit, note in table
    ]
    text.insert(1, "-" * max(len(line) for line in text))
    return "\n".join(text)
