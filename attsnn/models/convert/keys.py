"""What the families share: what a family is, state dicts without wrappers, renaming by tables, gates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from attsnn.models.registry import create

State = Mapping[str, Tensor]
Keywords = dict[str, Any]  # of the function that makes a module


class Family(NamedTuple):
    """How the state dicts of a published code become ours.

    - `rename`: (theirs, without wrappers and prefix) -> ours, in the same order.
    - `infer`: (ours, theirs, keywords given with the file) -> the keywords of `make`.
    - `make`: builds the module.
    - `allow`: the classes other than tensors that its checkpoints hold.
    """

    rename: Callable[[State], dict[str, Tensor]]
    infer: Callable[[State, State, Keywords], Keywords]
    make: Callable[..., nn.Module] = create
    allow: Sequence[type] = ()


WRAPPERS = ("net", "model", "state_dict", "net_parameters")
AFFINE = ("weight", "bias")
NORM = (*AFFINE, "running_mean", "running_var", "num_batches_tracked")


def unwrapped(state_dict: Mapping[str, Any], family: str) -> dict[str, Tensor]:
    """The bare state dict, without the checkpoint around it and the prefix `module.`."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"a state dict of {family} is wanted, got {type(state_dict).__name__}")
    while wrapper := next((w for w in WRAPPERS if isinstance(state_dict.get(w), Mapping)), None):
        state_dict = state_dict[wrapper]
    bare = {}
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} holds {type(value).__name__}, not a tensor: this is not a state dict of {family}"
            )
        name = str(key).removeprefix("module.")
        if name in bare:
            raise ValueError(f"{key!r} is there twice, with and without its prefix")
        bare[name] = value
    return bare


def unknown(key: str, family: str) -> ValueError:
    """The error for a key that no network of the family has."""
    return ValueError(f"{key!r} is not a key of a published {family} network")


def by_table(theirs: State, family: str, table: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Renames by a table {module of theirs: prefix of ours}. None: weights that ours do without."""
    ours = {}
    for key, value in theirs.items():
        if not known(key, table):
            raise unknown(key, family)
        head, _, leaf = key.rpartition(".")
        name = table[head]
        if name is not None:
            ours[name + leaf] = as_matrix(key, value) if is_matrix(name) else value
    return ours


def known(key: str, table: Mapping[str, str | None]) -> bool:
    """Whether the table has the key's module, and the module has such a tensor."""
    head, _, leaf = key.rpartition(".")
    if head not in table:
        return False
    ours = table[head]
    return leaf in (("weight",) if ours is None else NORM if ours.endswith("norm.") else AFFINE)


def is_matrix(name: str) -> bool:
    """Whether it is a weight of a gate's MLP, published as a 1x1 convolution."""
    return ".reduce." in name or ".expand." in name


def as_matrix(key: str, value: Tensor) -> Tensor:
    """Turns [a, b, 1, ...] into [a, b]."""
    if value.dim() < 2 or value.numel() == 0:
        raise ValueError(f"{key!r} must be the matrix of a gate, got shape {tuple(value.shape)}")
    return value.flatten(1)


def shape_of(state: State, key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor, which must have `dimensions` dimensions. KeyError if it is missing."""
    shape = tuple(state[key].shape)
    if len(shape) != dimensions:
        raise ValueError(f"{key!r} must have {dimensions} dimensions, got shape {shape}")
    return shape


def side_of(flat: int, channels: int) -> int:
    """The side of the maps of so many channels that a linear layer reads. Published frames are square."""
    cells = flat // max(1, channels)
    side = math.isqrt(cells)
    if side**2 != cells:
        raise ValueError(f"the linear layer reads {cells} cells a channel, which do not make a square frame")
    return side


def none_asked(given: Keywords, family: str) -> None:
    """Raises for keywords that the networks of the family do not have."""
    if given:
        raise ValueError(f"{' and '.join(given)} are of a PFA; {family} has none")


def infer_attention(state: State, gate: str) -> tuple[str | None, Keywords]:
    """The attention's name, and the keywords that follow from its weights.

    `gate` is the beginning of one module's keys.
    """
    letters = "".join(
        x[0].upper() for x in ("temporal", "channel", "spatial") if any(gate + x in k for k in state)
    )
    kwargs = {}
    if "T" in letters:
        kwargs["steps"] = state[gate + "temporal.reduce.weight"].shape[1]
        kwargs["temporal_ratio"] = _infer_ratio(state, "temporal")
    if "C" in letters:
        kwargs["channel_ratio"] = _infer_ratio(state, "channel")
    return letters + "A" if letters else None, kwargs


def _infer_ratio(state: State, gate: str) -> int:
    """The ratio that all gates of a kind, size -> size // ratio, have in common."""
    end = f".attention.{gate}.reduce.weight"
    shapes = {v.shape for k, v in state.items() if k.endswith(end)}
    if not shapes:
        raise KeyError(end.removeprefix("."))
    ratios = range(1, max(size for _, size in shapes) + 1)
    ratio = next((r for r in ratios if all(size // r == hidden for hidden, size in shapes)), None)
    if ratio is None:
        raise ValueError(f"the {gate} gates have no ratio in common: {sorted(map(tuple, shapes))}")
    return ratio
