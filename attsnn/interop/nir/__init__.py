"""NIR, the neuromorphic intermediate representation (Pedersen et al., 2024; neuroir.org): `write` and `read`.

NIR has continuous time and neither soft resets nor gates nor norms; what it cannot say is refused by name.
Needs the extra `nir`.
"""

from .reading import NIRNetwork, read
from .writing import write

__all__ = ["NIRNetwork", "read", "write"]
