"""Why a number is what it is: the formulas of a layer with their values."""

from typing import TYPE_CHECKING

from . import energy
from .energy import Costs
from .records import Layer, Neurons, Synapses

if TYPE_CHECKING:
    from .result import Profile


def explain(profile: "Profile", layer: Layer) -> str:
    row, costs, n = profile[layer.name], profile.costs, profile.samples
    lines = [f"{layer.name}: {row.parameters:,} parameters; of one sample, the mean of {n:,}"]
    if layer.neurons is not None:
        lines += _neurons(layer.neurons, n)
    for s in layer.synapses.values():
        lines += _synapses(s, profile)
    for gate in layer.gates:
        count = energy.generation(gate, costs) / n
        lines += [
            f"  {gate.kind} (derived)",
            f"    generation = {gate.formula}, {energy.when_generated(costs)} = {count:,.0f} MACs",
            f"    refinement = values that it multiplies = {gate.refined / n:,.0f}",
        ]
    lines += [
        "  papers     = "
        f"sum of e T FL Phi + e_mac (generation + refinement) = {row.energy['papers']:,.3f} nJ",
    ]
    if not profile.read:
        return "\n".join([*lines, "  operations = unknown: inputs were not read"])
    found = energy.operations(layer, costs)
    lines += [
        f"  additions  = {_additions(layer, n, costs)} = {found.additions / n:,.1f}",
        f"  mult.      = {_multiplications(layer, n)} = {found.multiplications / n:,.1f}",
        f"  operations = e_ac additions + (e_mac - e_ac) mult. = {costs.e_ac} pJ * {found.additions / n:,.1f}"
        f" + {costs.e_mac - costs.e_ac:.3g} pJ * {found.multiplications / n:,.1f}"
        f" = {row.energy['operations']:,.3f} nJ",
        f"  memory     = operations + e_byte bytes = {row.energy['operations']:,.3f} nJ + {costs.e_byte} pJ"
        f" * {energy.traffic(layer, costs) / n:,.1f} = {row.energy['memory']:,.3f} nJ",
        f"  lemaire    = 32-bit operations, addressing and SRAM = {row.energy['lemaire']:,.3f} nJ",
    ]
    return "\n".join(lines)


def explain_total(profile: "Profile") -> str:
    total, costs, n = profile.total, profile.costs, profile.samples
    layers = profile._found
    neurons = [layer.neurons for layer in layers.values() if layer.neurons]
    spikes, updates = sum(x.spikes for x in neurons), sum(x.updates for x in neurons)
    gates = 1e-3 * costs.e_mac * profile.gates
    lines = [
        f"total: of one sample, the mean of {n:,}; each sum is over {len(layers)} layers",
        f"  neurons    = {total.neurons:,}, {updates / n:,.0f} updates",
        f"  NASAR      = spikes / (neurons * steps) = {spikes:,} / {updates:,} = {profile.nasar:.6f}",
        f"  papers     = {total.energy['papers']:,.3f} nJ, of it e_mac Delta MAC of the gates ="
        f" {costs.e_mac} pJ * {profile.gates:,.0f} = {gates:,.3f} nJ",
        f"  twin       = e_mac sum of FL = {profile.twin:,.3f} nJ",
        f"  r_EE       = twin / papers = {profile.r_ee():.4f}",
    ]
    for name in ("operations", "memory", "lemaire") if profile.read else ():
        lines.append(f"  {name:<10} = sum of the layers' = {total.energy[name]:,.3f} nJ")
    return "\n".join(lines)


def _neurons(neurons: Neurons, n: int) -> list[str]:
    what = {"spike": "spikes"}.get(neurons.emit, f"values that are not zero ({neurons.emit})")
    what = what if neurons.levels is None else f"sum of integers from 0 to {neurons.levels}"
    return [
        f"  neurons    = {' * '.join(map(str, neurons.shape))} = {neurons.size:,}, "
        f"{neurons.updates / n:,.0f} updates",
        f"  rate       = {what} / (neurons * steps) = {neurons.spikes:,} / {neurons.updates:,}"
        f" = {neurons.rate:.6f}",
    ]


def _synapses(s: Synapses, profile: "Profile") -> list[str]:
    costs, n = profile.costs, profile.samples
    t = energy.term(s, profile._found, n)
    cost = "e_mac" if t.mac else "e_ac"
    value = costs.e_mac if t.mac else costs.e_ac
    lines = [
        f"  {s.name}: {s.kind} {' x '.join(map(str, s.weight))}, input {s.values}",
        f"    FL       = {_fl(s)} = {t.fl:,.0f} MACs a step",
        f"    Phi      = {t.phi:.6f}: {t.why}",
        f"    papers   = {cost} T FL Phi = {value} pJ * {t.steps:g} * {t.fl:,.0f} * {t.phi:.6f}"
        f" = {1e-3 * value * t.operations:,.3f} nJ",
    ]
    if s.shown > 1:
        lines.append(f"    T        = {s.shown}: computed once, for its input is the same at each step")
    if not profile.read:
        return lines
    if s.real:
        lines.append(f"    MACs     = all, its input being real = {s.dense / n:,.0f}")
    else:
        lines.append(
            f"    synaptic = sum of {s.spikes / n:,.1f} input spikes, each by the outputs that it reaches"
            f" = {s.fan_out / n:,.1f}"
        )
    return lines


def _fl(s: Synapses) -> str:
    if s.kind == "linear":
        return f"i o = {s.weight[1]} * {s.weight[0]}"
    if s.kind == "matmul":
        return "rows inner columns"
    kernel = " * ".join(map(str, s.weight[2:]))
    if s.transposed:
        return f"k^2 c_out / groups of each input = {kernel} * {s.weight[1]}"
    out = " * ".join(map(str, s.out_shape[1:]))
    return f"k^2 h w c_in c_out / groups = {kernel} * {out} * {s.weight[1]} * {s.weight[0]}"


def _additions(layer: Layer, n: int, costs: Costs) -> str:
    found = energy.operations(layer, costs)
    gates = sum(gate.pooled for gate in layer.gates)
    parts = {
        "synaptic": found.synaptic,
        "MACs": found.macs,
        "biases": sum(s.outputs for s in layer.synapses.values() if s.bias),
        "shortcut": layer.added,
        "pool": layer.pooled * (layer.pool**2 - 1),
        "descriptors": gates,
        "neurons": layer.neurons.updates if layer.neurons else 0,
    }
    return " + ".join(f"{name} {value / n:,.1f}" for name, value in parts.items() if value) or "0"


def _multiplications(layer: Layer, n: int) -> str:
    found = energy.operations(layer, Costs())
    parts = {
        "MACs": found.macs,
        "refinement": sum(gate.refined for gate in layer.gates),
        "decay": layer.neurons.updates if layer.neurons and layer.neurons.leaks else 0,
    }
    return " + ".join(f"{name} {value / n:,.1f}" for name, value in parts.items() if value) or "0"
