"""What a probe hands to whoever shows it: words, a table, charts, numbers; and the table as text."""

from typing import NamedTuple


class Series(NamedTuple):
    """A named line or cloud of a chart: points [(x, y)], its colour 0 .. 7, `look` "line", "dots" or "faint" (a line in the background)."""

    name: str
    points: list
    colour: int = 0
    look: str = "line"


class Chart(NamedTuple):
    """A chart for any renderer: title, what it shows, names of its axes, [Series], whether either axis is logarithmic, horizontal marks
    [(y, name)] and whether both axes have one scale."""

    title: str
    note: str
    across: str
    up: str
    series: list
    log_across: bool = False
    log_up: bool = False
    marks: tuple = ()
    equal: bool = False


class Finding(NamedTuple):
    """What one probe found: its name and heading, sentences, a table, charts, and everything as plain numbers for --json."""

    name: str
    title: str
    words: list
    heads: list
    rows: list
    charts: list
    numbers: dict


def shown(value):
    """A number as a table has it."""
    if isinstance(value, complex):
        return f"{value.real:+.4f}{value.imag:+.4f}i"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        if value != value:
            return "-"
        if value.is_integer() and abs(value) < 1e6:
            return str(int(value))
        return f"{value:.4g}" if 1e-2 <= abs(value) < 1e4 else f"{value:.2e}"
    return str(value)


def as_text(finding):
    """The finding as lines of text: heading, table, sentences."""
    cells = [list(finding.heads), *([shown(value) for value in row] for row in finding.rows)]
    widths = [max(map(len, column)) for column in zip(*cells)] if finding.rows else []
    lines = ["", f"{finding.title}", *("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells if widths)]
    return "\n".join([*lines, *(f"  {words}" for words in finding.words)])


def numbers_of(heads, rows):
    """[{head: value}] of a table's rows; a complex number is [real, imaginary]."""
    return [{head: [value.real, value.imag] if isinstance(value, complex) else value for head, value in zip(heads, row)} for row in rows]
