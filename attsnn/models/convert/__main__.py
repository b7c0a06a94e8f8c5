"""`python -m attsnn.models.convert FAMILY SOURCE TARGET`."""

from collections.abc import Sequence

import tyro

from . import main


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command line (default: this process's)."""
    command = tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(main)
    tyro.cli(command, prog="python -m attsnn.models.convert", args=arguments)


if __name__ == "__main__":
    cli()
