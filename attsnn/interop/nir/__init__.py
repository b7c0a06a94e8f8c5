"""NIR, the neuromorphic intermediate representation (Pedersen et al., 2024; neuroir.org): `write` and `read`.

NIR has continuous time, and has no soft resets, gates or norms. What it cannot express raises an error that
names it. Needs the extra `nir`.
"""

from .reading import NIRNetwork, read
from .writing import write

__all__ = ["NIRNetwork", "read", "write"]
