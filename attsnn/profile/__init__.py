"""What a network spends on its results: firing rates, synaptic operations and energy,
from the kernels' counts::

    with profile(model) as p:
        model(x)
    print(p)

docs/energy.md has every formula, its source and its limits.
"""

from .comparing import PUBLISHED, Comparison, Published, compare
from .energy import MODELS, Costs
from .health import Finding, Health, findings, health, sentences
from .listening import rates, scores
from .profiling import profile
from .result import Profile, Row

__all__ = [
    "MODELS",
    "PUBLISHED",
    "Comparison",
    "Costs",
    "Finding",
    "Health",
    "Profile",
    "Published",
    "Row",
    "compare",
    "findings",
    "health",
    "profile",
    "rates",
    "scores",
    "sentences",
]
