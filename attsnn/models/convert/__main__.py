"""`python -m attsnn.models.convert FAMILY SOURCE TARGET`."""

from collections.abc import Sequence

import tyro

from . import main


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command line (default: this process's)."""
    tyro.cli(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(main), args=arguments)


if __name__ == "__main__":
    cli()
