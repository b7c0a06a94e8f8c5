"""What a network did while it was profiled, as plain numbers: totals over all samples of all batches."""

import math
from dataclasses import dataclass, field
from typing import TypeVar

KINDS = UNREAD, BINARY, INTEGER, REAL = "not read", "binary", "integer", "real"


@dataclass
class Synapses:
    """A convolution, a linear layer, or a product of two computed matrices."""

    name: str
    kind: str  # conv2d, linear, matmul, ...
    weight: tuple[int, ...]  # its shape
    groups: int
    stride: tuple[int, ...]
    bias: bool
    word: int  # bytes of a weight
    transposed: bool = False
    rows: int = 0  # inputs that it was applied to: samples x steps
    inputs: int = 0  # values
    outputs: int = 0
    dense: int = 0  # multiply-accumulates of a dense computation, including those with padding
    alive: int = 0  # input values that are not zero
    spikes: int = 0  # the sum of the input values, where they are binary or integer
    fan_out: int = 0  # the same sum, each value weighted by the number of outputs that it reaches
    values: str = UNREAD  # what the input's values are, one of KINDS
    feeders: dict[str, int] = field(default_factory=dict)  # {layer whose spikes it read: number of values}
    first: bool = False  # whether no layer before it computed its input
    before: str | None = None  # the layer of neurons that ran last before it
    shown: int = 1  # steps that one computation stands for
    out_shape: tuple[int, ...] = ()

    @property
    def kernel(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.weight[2:])

    @property
    def outputs_per_input(self) -> int:
        """Channels that an input value reaches, for one position of the kernel."""
        if self.kind == "linear":
            return self.weight[0]
        return self.weight[1] if self.transposed else self.weight[0] // self.groups

    @property
    def real(self) -> bool:
        return self.values == REAL


@dataclass
class Neurons:
    """A layer of neurons."""

    by_step: list[int] = field(default_factory=list)  # spikes, all samples
    by_channel: list[int] = field(default_factory=list)
    updates: int = 0  # neurons x steps x samples
    shape: tuple[int, ...] = ()  # of one sample and step
    steps: int = 0
    leaks: bool = True  # whether the state is multiplied by something
    emit: str = "spike"
    levels: int | None = None
    normalize: bool = False
    word: int = 4  # bytes of a state

    @property
    def spikes(self) -> int:
        return sum(self.by_step)

    @property
    def size(self) -> int:
        """Neurons."""
        return math.prod(self.shape)

    @property
    def rate(self) -> float:
        return self.spikes / self.updates if self.updates else math.nan


@dataclass
class Gate:
    """An attention gate. For a PFA, `kind` is "PFA" and all of its factors count together."""

    kind: str  # TA, CA, SA or PFA
    formula: str  # how generation is counted, for one window
    once: int = 0  # multiply-accumulates of the generation, if computed once a sample; all samples
    by_step: int = 0  # the same if gates are computed at every step
    refined: int = 0  # values that a gate multiplies
    pooled: int = 0  # values that descriptors are made from
    added: bool = False  # whether its map is added, not multiplied


@dataclass
class Layer:
    """All that has one name: synapses, what follows them, and their neurons."""

    name: str
    synapses: dict[str, Synapses] = field(default_factory=dict)
    neurons: Neurons | None = None
    gates: list[Gate] = field(default_factory=list)
    parameters: int = 0
    normed: bool = False  # whether it has a norm that folds into weights and biases
    pool: int = 1  # side of its average pool
    pooled: int = 0  # values that an average pool returned
    added: int = 0  # values of shortcuts


Record = TypeVar("Record", Synapses, Neurons, Gate, Layer)
SUMS = {
    Synapses: ("rows", "inputs", "outputs", "dense", "alive", "spikes", "fan_out"),
    Neurons: ("updates",),
    Gate: ("once", "by_step", "refined", "pooled"),
    Layer: ("pooled", "added"),
}


def add(one: Record, other: Record) -> None:
    """Adds the record of the same layer or gate from another profile."""
    for name in SUMS[type(one)]:
        setattr(one, name, getattr(one, name) + getattr(other, name))
    if isinstance(one, Synapses) and isinstance(other, Synapses):
        one.values = max(one.values, other.values, key=KINDS.index)
        for name, count in other.feeders.items():
            one.feeders[name] = one.feeders.get(name, 0) + count
    elif isinstance(one, Neurons) and isinstance(other, Neurons):
        one.by_step = summed(one.by_step, other.by_step)
        one.by_channel = summed(one.by_channel, other.by_channel)
        one.steps = max(one.steps, other.steps)
    elif isinstance(one, Layer) and isinstance(other, Layer):
        for name, synapses in other.synapses.items():
            if name in one.synapses:
                add(one.synapses[name], synapses)
            else:
                one.synapses[name] = synapses
        if one.neurons is None:
            one.neurons = other.neurons
        elif other.neurons is not None:
            add(one.neurons, other.neurons)
        for mine, theirs in zip(one.gates, other.gates, strict=True):
            add(mine, theirs)


def summed(one: list[int], other: list[int]) -> list[int]:
    """The sum of two lists; the shorter one is filled up with zeros."""
    longer, shorter = sorted((one, other), key=len, reverse=True)
    return [a + (shorter[i] if i < len(shorter) else 0) for i, a in enumerate(longer)]
