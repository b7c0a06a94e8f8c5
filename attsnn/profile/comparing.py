"""Several networks on the same data, side by side."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attsnn._text import amount, joules, markdown, table
from attsnn.layers.settling import AsItWas

from .profiling import profile
from .result import Profile

Batch = Tensor | tuple[Tensor, Tensor]


class Published(NamedTuple):
    """What the paper reports of DVS128 Gesture, 15 ms x 60, three convolutions (TPAMI 2023, tables 1, 2)."""

    r_ee: float  # against the network without attention
    nasar: float
    accuracy: float


PUBLISHED = {
    "none": Published(1.0, 0.173, 0.9063),
    "TA": Published(2.2, 0.073, 0.9260),
    "CA": Published(2.2, 0.072, 0.9388),
    "SA": Published(2.5, 0.058, 0.9250),
    "TCA": Published(3.5, 0.034, 0.9573),
    "TSA": Published(3.4, 0.030, 0.9431),
    "CSA": Published(3.4, 0.030, 0.9479),
    "TCSA": Published(3.4, 0.026, 0.9653),
}


@dataclass(frozen=True)
class Comparison:
    """`profiles` by name; `base`: the name of what r_EE is taken against; `accuracy` where there were
    labels.
    """

    profiles: dict[str, Profile]
    base: str
    accuracy: dict[str, float]
    published: Mapping[str, Published]

    def r_ee(self, name: str) -> float:
        """Energy of the base by that network's, the papers' model."""
        return self.profiles[name].r_ee(self.profiles[self.base])

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows of the table."""
        head = ["network", *(["accuracy"] if self.accuracy else []), "parameters", "spikes", "NASAR"]
        head += ["gates' MACs", "papers", "operations", "memory", "lemaire", f"r_EE / {self.base}"]
        head += ["r_EE / twin", *(["published r_EE", "published NASAR"] if self.published else [])]
        rows = []
        for name, p in self.profiles.items():
            row = [name, *([f"{self.accuracy[name]:.2%}"] if self.accuracy else []), f"{p.parameters:,}"]
            row += [amount(p.spikes), f"{p.nasar:.4f}", amount(p.gates)]
            row += [*map(joules, p.total.energy.values()), f"{self.r_ee(name):.3g}", f"{p.r_ee():.3g}"]
            if self.published:
                known = self.published.get(name)
                row += ["-", "-"] if known is None else [f"{known.r_ee:g}", f"{known.nasar:g}"]
            rows.append(tuple(row))
        return tuple(head), rows

    def __str__(self) -> str:
        return table(*self.cells())

    def markdown(self) -> str:
        return markdown(*self.cells()) + "\n"


def compare(
    networks: Mapping[str, nn.Module],
    data: Tensor | Iterable[Batch],
    *,
    base: str | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    published: Mapping[str, Published] | None = None,
    **costs: Any,
) -> Comparison:
    """Profiles networks on the same data, in evaluation mode and without gradient; each is afterwards in the
    mode in which it was.

    Args:
        networks: by name, as the table shall call them.
        data: one batch, or batches, as the networks take them; a batch may be (inputs, labels), for the
            accuracy.
        base: which of them r_EE is taken against; default: the only one without gates, else the first.
        forward: (network, inputs) -> scores [N, classes]; default: calls the network.
        published: beside ours, by the same names: `PUBLISHED`, say.
        costs: as of `profile`.
    """
    if not networks:
        raise ValueError("compare: give at least one network, by name")
    if base is not None and base not in networks:
        raise ValueError(f"base must be one of {', '.join(networks)}, got {base!r}")
    batches = [data] if isinstance(data, Tensor) else data
    if iter(batches) is batches:  # it can be read once, and is read for each network
        batches = list(batches)
    profiles, accuracy = {}, {}
    for name, network in networks.items():
        was = AsItWas(network)
        network.eval()
        try:
            profiles[name], accuracy[name] = _measured(network, batches, forward, costs)
        finally:
            was.restore()
    plain = [name for name, p in profiles.items() if not p.gates]
    base = base or (plain[0] if len(plain) == 1 else next(iter(networks)))
    shown = {name: share for name, share in accuracy.items() if share is not None}
    return Comparison(profiles, base, shown if len(shown) == len(networks) else {}, published or {})


@torch.no_grad()
def _measured(
    network: nn.Module,
    batches: Iterable[Batch],
    forward: Callable[[nn.Module, Tensor], Tensor] | None,
    costs: Mapping[str, Any],
) -> tuple[Profile, float | None]:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    correct: Tensor | int = 0
    seen = 0
    with profile(network, **costs) as found:
        for batch in batches:
            x, labels = batch if isinstance(batch, tuple | list) else (batch, None)
            out = forward(network, x.to(device)) if forward else network(x.to(device))
            if labels is not None:
                correct += (out.argmax(1) == labels.to(device)).sum()
                seen += len(labels)
    return found, float(correct) / seen if seen else None
