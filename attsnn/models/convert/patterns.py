"""Renaming by patterns, for published names that have numbers inside."""

import re
from collections.abc import Callable, Sequence

from torch import Tensor

from .keys import State, as_matrix, is_matrix, unknown

Patterns = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
ATTENTION = [
    (r"\.attention\.ta\.sharedMLP\.0\.", ".attention.temporal.reduce."),
    (r"\.attention\.ta\.sharedMLP\.2\.", ".attention.temporal.expand."),
    (r"\.attention\.ca\.sharedMLP\.0\.", ".attention.channel.reduce."),
    (r"\.attention\.ca\.sharedMLP\.2\.", ".attention.channel.expand."),
    (r"\.attention\.sa\.conv\.", ".attention.spatial.conv."),
]
# What only published names have: a key that still has it is unknown. And what our names look like.
_LEFT = re.compile(r"\.network\.|\.residual_function\.|\.sharedMLP\.|\.bn\.|\.shortcut\.\d|^\.conv\d")
_OURS = re.compile(
    r"\.(features|stem|stages|classifier)\.([\w.]+\.)?"
    r"(weight|bias|running_mean|running_var|num_batches_tracked|leak|threshold)"
)


def by_patterns(
    theirs: State, family: str, patterns: Patterns, unused: re.Pattern[str] | None = None
) -> dict[str, Tensor]:
    """Renames by all patterns in turn, with a dot before each key. Drops keys that match `unused`."""
    ours = {}
    for key, value in theirs.items():
        name = bare = "." + key
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        if unused is not None and unused.search(name):
            continue
        if name == bare or _LEFT.search(name) or not _OURS.fullmatch(name):
            raise unknown(key, family)
        name = name.removeprefix(".")
        if name in ours:
            raise ValueError(f"{key!r} is there twice, under two names of {name}")
        vector = ".neuron." in name  # one value a channel, published as [C, 1, 1] or [1, F]
        ours[name] = as_matrix(key, value) if is_matrix(name) else value.flatten() if vector else value
    return ours
