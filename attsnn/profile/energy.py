"""The energy of what a network did, by published models: from records (totals of all samples) to picojoules.

papers      Attention SNN (TPAMI 2023), equations of section "energy": T FL Phi accumulates per layer,
            multiply-accumulates in the first layer, plus what the gates add.
operations  every addition and multiplication that an event-driven machine makes, norms folded; no memory.
memory      operations, and 24.96 pJ for each byte of a weight, bias or state that is read or written.
lemaire     Lemaire et al., 2022 (arXiv 2210.13107): integers, addressing, and SRAM by its size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .records import REAL, UNREAD, Gate, Layer, Neurons, Synapses

MODELS = ("papers", "operations", "memory", "lemaire")


@dataclass(frozen=True)
class Costs:
    """Energies of single operations, in picojoules.

    Args:
        e_mac: a multiply-accumulate of 32-bit floating point at 45 nm (Horowitz, 2014).
        e_ac: an accumulate of the same. It is an addition, so a multiplication costs e_mac - e_ac.
        e_byte: reading or writing a byte (3.12 pJ a bit, as STEP takes it).
        per_step: whether gates are computed at every step, as in the paper's text, or once a sample, as in
            its released code.
        e_add: an addition of 32-bit integers (Lemaire et al., 2022).
        e_mul: a multiplication of 32-bit integers (Lemaire).
        sram: points (bytes, pJ); a 32-bit access to a memory of a given size costs what the line through them
            says (Lemaire).
        queue: the number of messages in the queues that spikes pass through (Lemaire).

    Raises ValueError for energies that do not fit.
    """

    e_mac: float = 4.6
    e_ac: float = 0.9
    e_byte: float = 24.96
    per_step: bool = False
    e_add: float = 0.1
    e_mul: float = 3.1
    sram: tuple[tuple[float, float], ...] = ((0, 0.0), (8192, 10.0), (32768, 20.0), (1048576, 100.0))
    queue: int = 1000

    def __post_init__(self) -> None:
        for name in ("e_mac", "e_ac", "e_byte", "e_add", "e_mul"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be an energy in pJ of at least 0, got {value!r}")
        if self.e_mac < self.e_ac:
            raise ValueError(f"e_mac must be at least e_ac, got {self.e_mac} and {self.e_ac}")

    def access(self, size: float) -> float:
        """The energy of 32 bits from a memory of `size` bytes."""
        size = min(size, self.sram[-1][0])
        for (low, start), (high, end) in zip(self.sram, self.sram[1:], strict=False):
            if size <= high:
                return start + (end - start) * (size - low) / (high - low)
        return self.sram[-1][1]


class Operations(NamedTuple):
    """The operations of a layer, for all samples."""

    synaptic: int  # additions that spikes cause
    macs: int  # multiply-accumulates: of real inputs, and of gates
    additions: int  # all, including those of MACs and spikes
    multiplications: int

    def energy(self, costs: Costs) -> float:
        return costs.e_ac * self.additions + (costs.e_mac - costs.e_ac) * self.multiplications


class Term(NamedTuple):
    """The term of one layer of synapses in the papers' sum."""

    fl: float  # FL, multiply-accumulates per step and sample
    steps: float  # T, how often it is computed for a sample
    phi: float
    mac: bool  # whether its operations count as multiply-accumulates
    why: str  # where Phi comes from

    @property
    def operations(self) -> float:
        """T FL Phi, for one sample."""
        return self.steps * self.fl * self.phi


def generation(gate: Gate, costs: Costs) -> int:
    """The multiply-accumulates that generate a gate's weights, for one descriptor."""
    return gate.by_step if costs.per_step else gate.once


def operations(layer: Layer, costs: Costs) -> Operations:
    """What an event-driven machine computes. Zeros of a binary or integer input cost nothing (an integer n
    is n spikes); a real input is computed in full. Norms and gains fold into weights and biases.
    """
    synaptic = sum(s.fan_out for s in layer.synapses.values() if not s.real)
    macs = sum(s.dense for s in layer.synapses.values() if s.real)
    for gate in layer.gates:
        macs += generation(gate, costs) * (2 if gate.kind in ("TA", "CA") else 1)  # for mean and maximum
    additions = synaptic + macs + layer.added + layer.pooled * (layer.pool**2 - 1)
    additions += sum(s.outputs for s in layer.synapses.values() if s.bias)
    additions += sum(gate.pooled for gate in layer.gates)
    multiplications = macs + sum(gate.refined for gate in layer.gates)
    if layer.neurons is not None:
        additions += layer.neurons.updates
        multiplications += layer.neurons.updates if layer.neurons.leaks else 0
    return Operations(synaptic, macs, additions, multiplications)


def traffic(layer: Layer, costs: Costs) -> int:
    """The bytes of weights, biases and states that are read and written, for all samples, without a cache."""
    count = 0
    for s in layer.synapses.values():
        count += s.word * ((s.dense if s.real else s.fan_out) + (s.outputs if s.bias else 0))
    count += 4 * sum(generation(gate, costs) for gate in layer.gates)
    if layer.neurons is not None:
        count += 2 * layer.neurons.word * layer.neurons.updates
    return count


# ---- the papers' model
# ------------------------------------------------------------------------------------------


def term(s: Synapses, layers: Mapping[str, Layer], samples: int) -> Term:
    """T FL Phi, where Phi is the rate of the neurons that feed the layer."""
    once = s.dense * s.shown / samples
    steps: float = s.shown
    known = {name: layers[name].neurons for name in s.feeders}
    feeder = max(known, key=s.feeders.__getitem__) if known else s.before
    neurons = layers[feeder].neurons if feeder is not None else None
    if s.shown == 1 and s.rows == samples and neurons is not None:  # a read-out from a mean over the steps
        steps = neurons.steps
        once *= steps
    elif s.shown == 1 and s.rows:
        steps = s.rows / samples
    fl = once / steps if steps else 0.0
    if s.first:
        return Term(fl, steps, *_first(s, s.rows > samples))
    if neurons is None:
        if s.values in (REAL, UNREAD) or not s.inputs:
            what = "what was not read" if s.values == UNREAD else "real values"
            return Term(fl, steps, 1.0, True, f"1: it reads {what}, before any neurons of ours")
        why = f"{s.spikes:,} spikes / {s.inputs:,} inputs, as read: no neurons of ours feed it"
        return Term(fl, steps, s.spikes / s.inputs, False, why)
    why = f"{neurons.spikes:,} / {neurons.updates:,} of {feeder}, which feeds it"
    if not known:
        why = f"{neurons.spikes:,} / {neurons.updates:,} of {feeder}, whose current it reads, not its spikes"
    return Term(fl, steps, neurons.rate, neurons.emit != "spike", why)


def _first(s: Synapses, frames: bool) -> tuple[float, bool, str]:
    """Phi_0: for frames, one a step, the share of values that are not zero; for an image 1."""
    if s.values == UNREAD:
        return 1.0, True, "1: the first layer's input was not read"
    if s.alive and (frames or not s.real):
        return s.alive / s.inputs, True, f"{s.alive:,} / {s.inputs:,} inputs that are not zero"
    return 1.0, True, "1: the first layer reads an image"


def papers(layer: Layer, layers: Mapping[str, Layer], samples: int, costs: Costs) -> float:
    """pJ per sample."""
    total = sum(
        (costs.e_mac if t.mac else costs.e_ac) * t.operations
        for t in (term(s, layers, samples) for s in layer.synapses.values())
    )
    return total + costs.e_mac * gate_macs(layer, costs) / samples


def when_generated(costs: Costs) -> str:
    """How often gates are computed, in words."""
    return "at every step" if costs.per_step else "once a sample"


def gate_macs(layer: Layer, costs: Costs) -> int:
    """Delta MAC: the multiply-accumulates of the gates' generation and refinement, for all samples."""
    return sum(generation(gate, costs) + gate.refined for gate in layer.gates)


# ---- Lemaire's model
# ------------------------------------------------------------------------------------------

WORD = 4  # bytes of each value that it reads or writes


def lemaire(layer: Layer, samples: int, costs: Costs) -> float:
    """pJ per sample for operations, addressing and memory. The paper does not have gates; only
    their operations are counted.
    """
    total = sum(_of_synapses(s, costs) for s in layer.synapses.values())
    if layer.neurons is not None:
        total += _of_neurons(layer.neurons, costs)
    for gate in layer.gates:
        total += (costs.e_mul + costs.e_add) * generation(gate, costs) + costs.e_mul * gate.refined
    return total / samples


def _of_synapses(s: Synapses, costs: Costs) -> float:
    mac = costs.e_mul + costs.e_add
    channels = s.weight[1] * s.groups if s.transposed else s.weight[0] if s.weight else 0
    size = WORD * (math.prod(s.weight) + (channels if s.bias else 0))
    rows = max(s.rows, 1)
    biases = s.outputs if s.bias else 0
    convolution = s.kind not in ("linear", "matmul")
    energy = costs.e_add * biases + costs.access(size) * biases
    if s.kind == "matmul":
        return energy + (mac * s.dense if s.real else costs.e_add * s.fan_out)
    if s.real:
        addresses = s.inputs + s.outputs + (rows * channels * s.kernel if convolution else 0)
        read = s.dense if convolution else s.inputs
        energy += mac * s.dense + costs.e_add * addresses
        return energy + read * costs.access(WORD * s.inputs / rows) + s.dense * costs.access(size)
    reached = s.spikes * s.outputs_per_input * s.kernel
    strides = s.stride if not s.transposed else (1,) * len(s.stride)
    positions = math.prod(-(-k // j) for k, j in zip(s.weight[2:], strides, strict=True))
    energy += costs.e_add * (s.spikes * s.outputs_per_input * positions + reached)
    energy += mac * (2 * s.spikes if convolution else 0)
    energy += s.spikes * costs.access(WORD * costs.queue) + reached * costs.access(size)
    return energy + 2 * reached * costs.access(WORD * s.outputs / rows)


def _of_neurons(n: Neurons, costs: Costs) -> float:
    energy = costs.e_add * n.spikes + n.spikes * costs.access(WORD * costs.queue)
    energy += (costs.e_mul + costs.e_add) * n.updates if n.leaks else 0.0
    return energy + 2 * n.updates * costs.access(WORD * n.size)
