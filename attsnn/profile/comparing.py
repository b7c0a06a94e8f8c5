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
    """What the paper reports for DVS128 Gesture, 15 ms x 60 steps, three convolutions (TPAMI 2023,
    tables 1 and 2).

    Args:
        r_ee: energy of the network without attention, divided by that of this network.
        nasar: the network average spiking activity rate.
        accuracy: from 0 to 1.
    """

    r_ee: float
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
    """Several networks on the same data; print it for a table.

    Args:
        profiles: {name: profile}.
        base: the name of the network that r_EE compares with.
        accuracy: {name: from 0 to 1}; empty if labels were not given.
        published: what was published under these names.
    """

    profiles: dict[str, Profile]
    base: str
    accuracy: dict[str, float]
    published: Mapping[str, Published]

    def r_ee(self, name: str) -> float:
        """The energy of `base` divided by the energy of network `name`, under the papers' model."""
        return self.profiles[name].r_ee(self.profiles[self.base])

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The head and the rows of the table."""
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
        """The table for a Markdown page."""
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
    """Profiles networks on the same data, in evaluation mode and without gradients. Each is put back
    into its mode afterwards.

    Args:
        networks: {name: network}; the table uses these names.
        data: one batch, or several, as the networks take them. For the accuracy, a batch is (inputs, labels).
        base: the name of the network that r_EE compares with. Default: the only one without gates, otherwise
            the first.
        forward: (network, inputs) -> scores `[N, classes]`; default: calls the network.
        published: published numbers to show as well, by the same names, such as `PUBLISHED`.
        costs: as for `profile`.

    Raises ValueError if there are no networks, or if `base` is not one of them.
    """
    if not networks:
        raise ValueError("compare: give at least one network, by name")
    if base is not None and base not in networks:
        raise ValueError(f"base must be one of {', '.join(networks)}, got {base!r}")
    batches = [data] if isinstance(data, Tensor) else data
    if iter(batches) is batches:  # an iterator can be read only once, and each network reads it
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
