"""Tables of text, and the numbers in them."""

import math
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in texts
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """As `table`, for a Markdown page."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def amount(value: float | None) -> str:
    """A count with three digits, as in "1.18 M"; "-" for None and NaN."""
    return _digits(value, (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, ""))


def joules(nj: float | None, micro: str = "u") -> str:
    """An energy in nJ with three digits and its unit; "-" for None and NaN. `micro` is how µ is written."""
    return _digits(nj, (1e6, " mJ"), (1e3, f" {micro}J"), (1.0, " nJ"))


def _digits(value: float | None, *units: tuple[float, str]) -> str:
    if value is None or math.isnan(value):
        return "-"
    unit, name = next((u for u in units if abs(value) >= u[0]), units[-1])
    return f"{value / unit:.3g}{name}"
