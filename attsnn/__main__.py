"""`python -m attsnn report RUN [RUN ...]` writes one page about runs, from their directories alone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attsnn.plot.page import report
from attsnn.plot.reading import NoRunError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line (default: this process's); returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m attsnn",
        description="Data sets: python -m attsnn.data. Published weights: python -m attsnn.models.convert.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="report")
    page = commands.add_parser(
        "report",
        help="one page of one run or several side by side",
        description="One HTML file that needs nothing else: curves, confusion, rates, energy, attention, "
        "health, options and checksums of runs, from their directories alone. Of several the one without "
        "attention is what the others are compared with.",
    )
    page.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory: runs/samples")
    page.add_argument("--out", type=Path, help="the file to write; default: report.html in the last run")
    asked = parser.parse_args(arguments)
    out = asked.out or asked.runs[-1] / "report.html"
    try:
        report(asked.runs, out)
    except NoRunError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Cannot write {out}: {error.strerror or error}.", file=sys.stderr)
        return 1
    print(f"report: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
