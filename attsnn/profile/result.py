"""What a profile says: rates, operations and energy by layer and in all, their
reasons, and output formats.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist

from attsnn._files import replace_file
from attsnn._text import amount, joules, markdown, table

from . import energy
from .energy import Costs, Operations
from .records import Layer, add

NJ = 1e-3  # of a picojoule


@dataclass(frozen=True)
class Row:
    """The numbers of a layer, or of all layers, for one sample and all its steps.

    Args:
        layer: the layer's name.
        output: the shape of its output at one step.
        parameters: the number of parameters.
        neurons: the number of neurons.
        spikes: the number of spikes.
        rate: spikes per neuron and step; for integer spikes their mean; None without neurons.
        dense: multiply-accumulates of the non-spiking network of the same layers, the "twin".
        synaptic: additions that spikes cause.
        macs: multiply-accumulates, of real inputs and of gates.
        additions: all additions.
        multiplications: all multiplications.
        energy: {model: nJ} for each model in `MODELS`.
    """

    layer: str
    output: tuple[int, ...]
    parameters: int
    neurons: int
    spikes: float
    rate: float | None
    dense: float
    synaptic: float
    macs: float
    additions: float
    multiplications: float
    energy: dict[str, float]


class Profile:
    """What `profile` found, for one sample: `rows`, `total`, `nasar`, `energy`. Print it for a table.

    It is ready when the profile's block has ended. `p[name]` is the row of a layer. `layers` has the integer
    counts of all samples, from which everything else is computed.

    Args:
        costs: the energies of single operations.
        samples: the number of samples, if the network itself is not called.
        read: whether inputs were read.
    """

    def __init__(self, costs: Costs, samples: int | None = None, read: bool = True):
        self.costs, self._samples, self.read = costs, samples, read
        self.layers: dict[str, Layer] | None = None
        self.left_out: dict[str, int] = {}
        self.parameters = 0

    # ---- filling

    def fill(self, layers: dict[str, Layer], samples: int, parameters: int, left_out: dict[str, int]) -> None:
        """Takes the counts; `profile` calls it at its end."""
        self.layers, self.parameters, self.left_out = layers, parameters, dict(left_out)
        if self._samples is None:
            self._samples = samples

    def with_costs(self, **costs: Any) -> "Profile":
        """The same counts with other `Costs`: `p.with_costs(e_mac=3.2, per_step=True)`."""
        other = Profile(replace(self.costs, **costs), self._samples, self.read)
        other.fill(self._found, self.samples, self.parameters, self.left_out)
        return other

    def sum_over_processes(self, group: "dist.ProcessGroup | None" = None) -> "Profile":
        """The profile of all samples of all processes; every process must call it.

        Counts are integers, so their sums are exact. A process that ran nothing adds nothing.
        """
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, (self._found, self._samples or 0, self.left_out), group=group)
        layers: dict[str, Layer] = {}
        left_out: dict[str, int] = {}
        for found, _, missing in parts:
            for name, layer in found.items():
                if name in layers:
                    add(layers[name], layer)
                else:
                    layers[name] = layer
            for what, count in missing.items():
                left_out[what] = left_out.get(what, 0) + count
        whole = Profile(self.costs, read=self.read)
        whole.fill(layers, sum(samples for _, samples, _ in parts), self.parameters, left_out)
        return whole

    @property
    def _found(self) -> dict[str, Layer]:
        if self.layers is None:
            raise RuntimeError("the profile is not ready: leave its `with` block first")
        return self.layers

    @property
    def counted(self) -> bool:
        """Whether the number of samples is known. It is if neurons of attsnn ran in calls of the network,
        or if `samples` was given. Otherwise there are no numbers per sample.
        """
        return self.layers is not None and bool(self._samples)

    @property
    def samples(self) -> int:
        """The number of samples that were shown, in all batches. Raises ValueError if it is not known."""
        if self._found is not None and not self._samples:
            raise ValueError(
                "profile: the network itself was not called, so the number of samples is unknown: "
                "call it, or give profile(model, samples=N)"
            )
        return self._samples

    # ---- numbers

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of all layers, in the order in which they ran."""
        return [self._row(layer) for layer in self._found.values()]

    def _row(self, layer: Layer) -> Row:
        n, neurons, costs = self.samples, layer.neurons, self.costs
        synapses = [*layer.synapses.values()]
        counts: Sequence[float] = (math.nan,) * 4
        costs_of = {"papers": energy.papers(layer, self._found, n, costs)}
        if self.read:
            counts = found = energy.operations(layer, costs)
            computed = found.energy(costs) / n
            costs_of["operations"] = computed
            costs_of["memory"] = computed + costs.e_byte * energy.traffic(layer, costs) / n
            costs_of["lemaire"] = energy.lemaire(layer, n, costs)
        synaptic, macs, additions, multiplications = (count / n for count in counts)
        output = neurons.shape if neurons else synapses[-1].out_shape if synapses else ()
        return Row(
            layer.name,
            tuple(output),
            layer.parameters,
            neurons.size if neurons else 0,
            neurons.spikes / n if neurons else 0.0,
            neurons.rate if neurons else None,
            sum(s.dense * s.shown for s in synapses) / n,
            synaptic,
            macs,
            additions,
            multiplications,
            {name: NJ * costs_of.get(name, math.nan) for name in energy.MODELS},
        )

    @cached_property
    def total(self) -> Row:
        """The sum over the layers. Its parameters are those of the whole network, its rate is
        that of all neurons.
        """
        rows, layers = self.rows, [la.neurons for la in self._found.values() if la.neurons]
        updates = sum(n.updates for n in layers)
        sums = {name: sum(getattr(row, name) for row in rows) for name in ("neurons", "spikes", *_COUNTS)}
        return Row(
            "total",
            (),
            self.parameters,
            rate=sum(n.spikes for n in layers) / updates if updates else None,
            energy={name: sum(row.energy[name] for row in rows) for name in energy.MODELS},
            **sums,
        )

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.layer == name:
                return row
        raise KeyError(f"no layer {name!r} ran; those that did: {', '.join(self._found)}")

    def rates(self) -> dict[str, float]:
        """{layer: spikes per neuron and step} of the layers of neurons."""
        return {row.layer: row.rate for row in self.rows if row.rate is not None}

    def rate_by_step(self, name: str) -> list[float]:
        """NSAR of a layer, or with "total" of all neurons: for each step t, the spikes of step t divided
        by the number of neurons.
        """
        layers = self._found.values() if name == "total" else [self._layer(name)]
        neurons = [layer.neurons for layer in layers if layer.neurons is not None]
        steps = max((n.steps for n in neurons), default=0)
        alike = [n for n in neurons if n.steps == steps and len(n.by_step) == steps]
        found = []
        for t in range(steps):
            spikes = sum(n.by_step[t] for n in alike)
            found.append(spikes / max(sum(n.updates / steps for n in alike), 1))
        return found

    @property
    def nasar(self) -> float:
        """The network average spiking activity rate, which is spikes per neuron and step (Attention SNN,
        TPAMI 2023; called NASFR in the journal). NaN for a network without neurons of attsnn.
        """
        return math.nan if self.total.rate is None else self.total.rate

    @property
    def nasfr(self) -> float:
        """`nasar` by its other name."""
        return self.nasar

    @property
    def spikes(self) -> float:
        """The spikes of a sample, which are nasar times neurons times steps."""
        return self.total.spikes

    def energy(self, model: str = "papers") -> float:
        """nJ per sample under one of the models in `MODELS`. Raises ValueError for another model."""
        if model not in energy.MODELS:
            raise ValueError(f"model must be one of {', '.join(energy.MODELS)}, got {model!r}")
        return self.total.energy[model]

    @property
    def gates(self) -> float:
        """Delta MAC, the multiply-accumulates of the gates' generation and refinement, per sample. They
        follow from the gates' sizes; nothing is counted.
        """
        return sum(energy.gate_macs(layer, self.costs) for layer in self._found.values()) / self.samples

    @property
    def twin(self) -> float:
        """The energy e_mac FL of the non-spiking network of the same layers, in nJ per sample. That
        network looks at an image once, and at frames in every step.
        """
        every = [s for layer in self._found.values() for s in layer.synapses.values()]
        image = any(s.shown > 1 for s in every)
        terms = (energy.term(s, self._found, self.samples) for s in every)
        return NJ * self.costs.e_mac * sum(t.fl * (1 if image else t.steps) for t in terms)

    def r_ee(self, other: "Profile | None" = None) -> float:
        """The energy of another network divided by this one's, under the papers' model: r_EE = E_base /
        (E_base + Delta E).

        It is NaN if this network takes no energy.

        Args:
            other: the profile of the other network; default: the non-spiking twin of this one.
        """
        base, own = self.twin if other is None else other.energy(), self.energy()
        return base / own if own else math.nan

    def _layer(self, name: str) -> Layer:
        self[name]
        return self._found[name]

    # ---- reasons

    def explain(self, name: str) -> str:
        """The formulas of a layer's numbers with their values; for "total" those of the whole network."""
        from .reasons import explain, explain_total

        return explain_total(self) if name == "total" else explain(self, self._layer(name))

    # ---- forms

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The head and the rows of the table."""
        return _HEAD, [_cells(row) for row in (*self.rows, self.total)]

    def _below(self) -> list[str]:
        """The lines below the table."""
        total, twin = self.total, self.r_ee()
        lines = [
            f"Of one sample, the mean of {self.samples:,}: {total.neurons:,} neurons, {total.spikes:,.0f} "
            f"spikes, NASAR {self.nasar:.4f}."
        ]
        e = ", ".join(f"{name} {joules(value)}" for name, value in total.energy.items() if value == value)
        lines.append(f"Energy: {e}; r_EE against the non-spiking twin {twin:.2f} (papers' model).")
        if self.gates:
            when = energy.when_generated(self.costs)
            lines.append(f"Gates: {self.gates:,.0f} MACs by formula, computed {when}.")
        if not self.read:
            lines.append("Inputs were not read: operations, and what they and memory take, are unknown.")
        for what, count in self.left_out.items():
            lines.append(f"Not counted: {what}, {count} calls.")
        return lines

    def __str__(self) -> str:
        return "\n".join([table(*self.cells()), "", *self._below()])

    def summary(self, most: int = 40) -> str:
        """A narrower table, with only the layers of neurons and synapses; if there are more than `most`,
        with the total alone.
        """
        rows = [row for row in self.rows if row.rate is not None or row.dense]
        rows = [*(rows if len(rows) <= most else []), self.total]
        cells = []
        for row in rows:
            rate = "-" if row.rate is None else f"{row.rate:.2%}"
            output = " x ".join(map(str, row.output)) or "-"
            cells.append((row.layer, output, rate, amount(row.synaptic), amount(row.macs), *_shown(row)))
        head = ("layer", "output", "rate", "synaptic", "MACs", *_SHOWN)
        return "\n".join([table(head, cells), "", *self._below()])

    def __repr__(self) -> str:
        return "Profile(not ready)" if self.layers is None else f"Profile({len(self.layers)} layers)"

    def markdown(self) -> str:
        """The table for a Markdown page."""
        return "\n\n".join([markdown(*self.cells()), *self._below()]) + "\n"

    def csv(self) -> str:
        """One line per layer, and one for the total; energies in nJ."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n")
        write.writerow([*_FIELDS, *(f"{name}_nj" for name in energy.MODELS)])
        for row in (*self.rows, self.total):
            values = [getattr(row, name) for name in _FIELDS]
            values[1] = "x".join(map(str, row.output))
            write.writerow([_known(v) for v in (*values, *row.energy.values())])
        return text.getvalue()

    def json(self) -> str:
        """Everything: rows, totals, the counts that they come from, and the costs."""
        return json.dumps(self.as_dict(), indent=1)

    def as_dict(self) -> dict[str, Any]:
        """`json` as Python values, with None for what is not known."""
        known: dict[str, Any] = _known(self._as_dict())
        return known

    def _as_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "nasar": self.nasar,
            "r_ee_twin": self.r_ee(),
            "gate_macs": self.gates,
            "costs_pj": asdict(self.costs),
            "rows": [asdict(row) for row in self.rows],
            "total": asdict(self.total),
            "rate_by_step": {name: self.rate_by_step(name) for name in self.rates()},
            "left_out": self.left_out,
            "counts": {name: asdict(layer) for name, layer in self._found.items()},
        }

    def save(self, path: str | Path) -> None:
        """Writes a .csv, .json, .md or .txt file. Raises ValueError for another name."""
        path = Path(path)
        forms: dict[str, Callable[[], str]] = {
            ".csv": self.csv,
            ".json": self.json,
            ".md": self.markdown,
            ".txt": self.__str__,
        }
        if path.suffix not in forms:
            raise ValueError(f"path must end in {', '.join(forms)}, got {path.name!r}")
        replace_file(path, forms[path.suffix]().encode())


_SHOWN = ("papers", "operations", "memory")  # in the narrower table


def _shown(row: Row) -> list[str]:
    return [joules(row.energy[name]) for name in _SHOWN]


_COUNTS = (*("dense", "synaptic"), *Operations._fields[1:])
_FIELDS = ("layer", "output", "parameters", "neurons", "spikes", "rate", *_COUNTS)
_HEAD = (
    "layer",
    "output",
    "parameters",
    "rate",
    "twin's MACs",
    "synaptic",
    "MACs",
    "additions",
    "mult.",
    *energy.MODELS,
)


def _cells(row: Row) -> tuple[str, ...]:
    counts = [getattr(row, name) for name in _COUNTS]
    return (
        row.layer,
        " x ".join(map(str, row.output)) or "-",
        f"{row.parameters:,}",
        "-" if row.rate is None else f"{row.rate:.2%}",
        *map(amount, counts),
        *map(joules, row.energy.values()),
    )


def _known(value: Any) -> Any:
    """A value with None in place of each NaN."""
    if isinstance(value, dict):
        return {name: _known(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_known(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
