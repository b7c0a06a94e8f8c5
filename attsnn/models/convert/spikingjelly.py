"""State dicts of SpikingJelly networks (0.0.0.0.12 to 2.0), for attsnn networks with the same layers.

The names in them are chosen by SpikingJelly's users: containers, attributes and lists of any kind. So layers
are recognised by their tensors and their order: a convolution or linear layer, with the norm and the time
constant that follow it (the w of a `ParametricLIFNode`, which is that of `PLIF`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .keys import NORM, State, unwrapped

KINDS = {  # by a weight's dimensions
    2: "linear layer",
    3: "convolution of one dimension",
    4: "convolution",
    5: "convolution of three dimensions",
}
COUNTER = "num_batches_tracked"  # which old state dicts lack


class _Layer(NamedTuple):
    """A convolution or linear layer: its name, and its tensors with those of what follows it.

    `parts` has them as {part: {name: (key, shape)}}.
    """

    name: str
    parts: dict[str, dict[str, tuple[str, tuple[int, ...]]]]

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {
            part: {name: shape for name, (_, shape) in keys.items() if name != COUNTER}
            for part, keys in self.parts.items()
        }

    def __str__(self) -> str:
        kind = KINDS[len(self.shapes["layer"]["weight"])]
        parts = [
            f"{name if part in ('layer', name) else f'{part}.{name}'} {[*shape]}"
            for part, shapes in self.shapes.items()
            for name, shape in shapes.items()
        ]
        return f"{self.name} ({kind}: {', '.join(parts)})"


def from_spikingjelly(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Converts the state dict of a SpikingJelly network for a model of attsnn with the same layers.

    Use it as `model.load_state_dict(from_spikingjelly(torch.load(path), model))`. Layers are matched in the
    order in which they stand in both. The order does not matter between layers of different shapes, such as
    the 1x1 convolution of a shortcut and the others. Make the neurons alike by hand: a state dict has
    nothing of them but `w`. Nor does it tell a transposed convolution from a convolution, or the order in
    which layers of one shape run: compare the outputs of both networks.

    Args:
        state_dict: of the SpikingJelly network, bare or inside a checkpoint.
        model: the network of attsnn.

    Raises:
        ValueError: with the layers that have no counterpart, and for tensors that belong to no such layer.
    """
    tensors = unwrapped(state_dict, "SpikingJelly")
    found: dict[str, Tensor] = {}
    rest = _layers(tensors, "the state dict")
    for layer in _layers(model.state_dict(), "the model"):
        other = next((each for each in rest if each.shapes == layer.shapes), None)
        if other is None:
            left = "; ".join(map(str, rest)) or "nothing"
            raise ValueError(f"the state dict has no layer for {layer}; left of it: {left}")
        rest.remove(other)
        for part, keys in layer.parts.items():
            theirs = other.parts[part]
            for name, (key, _) in keys.items():
                found[key] = tensors[theirs[name][0]] if name in theirs else torch.tensor(0)
    if rest:
        raise ValueError(f"the model has no layer for {'; '.join(map(str, rest))}")
    return found


def _layers(state: State, what: str) -> list[_Layer]:
    groups: dict[str, dict[str, str]] = {}
    for key in state:
        place, _, name = key.rpartition(".")
        groups.setdefault(place, {})[name] = key
    layers: list[_Layer] = []
    for place, keys in groups.items():
        part = _part(keys, state)
        tensors = {name: (key, tuple(state[key].shape)) for name, key in keys.items()}
        if part == "layer":
            layers.append(_Layer(place, {"layer": tensors}))
        elif part is None or not layers or part in layers[-1].parts:
            raise ValueError(
                f"{what}: {', '.join(keys.values())} is neither a convolution, nor a linear layer, nor a "
                "norm or w that follows one"
            )
        else:
            layers[-1].parts[part] = tensors
    return layers


def _part(keys: dict[str, str], state: State) -> str | None:
    """What the tensors of a module are."""
    if "running_mean" in keys and {*keys} <= {*NORM}:
        return "norm"
    if {*keys} == {"w"}:
        return "w"
    layer = "weight" in keys and {*keys} <= {"weight", "bias"}
    return "layer" if layer and state[keys["weight"]].dim() in KINDS else None
