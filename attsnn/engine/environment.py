"""What environment variables tell the engine. No other module of the package reads them, except memory.py,
which stands alone. docs/environment.md lists every variable.
"""

import os
from typing import NamedTuple


class Launched(NamedTuple):
    """What torchrun told this process: the number of processes, its rank, and its rank on this machine."""

    world: int
    rank: int
    local: int


def launched() -> Launched:
    names = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
    return Launched(*(int(os.environ.get(name, alone)) for name, alone in names.items()))
