"""metrics.jsonl, with one line for each evaluation of a run, and the same as a table, metrics.csv."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attsnn._files import read_file, replace_file

from .sealed import parse
from .stored import Checkpoint, lines

Row = dict[str, Any]


def read(run: Path) -> tuple[list[Row], int]:
    """The rows, and how many lines are not rows (cut short by a crash, for example)."""
    try:
        found = [_row(line) for line in read_file(run / "metrics.jsonl").splitlines()]
    except FileNotFoundError:
        return [], 0
    whole = [row for row in found if row is not None]
    return whole, len(found) - len(whole)


def holds(run: Path, rows: Sequence[Row]) -> bool:
    """Whether the file holds these rows and nothing else. If there are no rows, it may be missing."""
    try:
        return read_file(run / "metrics.jsonl") == lines(rows)
    except OSError:
        return not rows


def write(run: Path, rows: Sequence[Row]) -> None:
    """Writes both files. If that raises OSError, the old content stays."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    replace_file(run / "metrics.jsonl", lines(rows))
    replace_file(run / "metrics.csv", text.getvalue().encode())


def before(rows: Sequence[Row], epoch: int) -> list[Row]:
    """The rows up to an epoch, without the final one."""
    return [row for row in rows if row["epoch"] <= epoch and not row.get("final")]


def mend(run: Path, saved: Checkpoint, say: Callable[[str], None]) -> None:
    """Where rows were lost or changed, writes what the checkpoint knows to have been recorded."""
    file, (found, unreadable) = run / "metrics.jsonl", read(run)
    if saved.rows is not None:
        epoch = saved.state["position"]["epoch"]
        if json.dumps(before(found, epoch)) != json.dumps(before(saved.rows, epoch)):
            write(run, before(saved.rows, epoch))
            say(f"{file} was not what had been recorded: it is what {saved.path.name} holds again.")
            return
    if unreadable:
        say(f"{unreadable} lines of {file} cannot be read and are left out.")


def _row(line: bytes) -> Row | None:
    try:
        row = parse(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and type(row.get("epoch")) is int
    return row if whole else None
