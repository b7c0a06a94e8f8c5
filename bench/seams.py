"""What lies between two convolutions: ours, PyTorch compositions, the best peer neuron behind PyTorch's norm.

python bench/seams.py [--device cpu|cuda] [--dtype fp32 ...] [--case B1 G1 ...] [--smoke]

Rows: inference, the forward pass of training, forward + backward; of M1, a whole network, the last alone.
Tables read as those of bench/neuron.py; results are added to the same files.
"""

import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attsnn import models
from attsnn.attention import attention
from attsnn.layers import SpikingLayer
from bench import cases, harness, peers
from bench.cases import SeamCase
from bench.harness import Ready
from bench.peers import OURS, PRESETS, SEAM_COLUMNS, GapError, Seam

ROWS = ("forward", "training forward", "step")
# Bytes of values of b bytes that must be moved at the least, a neuron and step behind a pool of k2 = k * k
# pixels: forward of inference, forward of training, backward.
FLOOR = {
    "B1": lambda b, k2: (2 * b, 3 * b, 5 * b),
    "G1": lambda b, k2: (*2 * [4 * b if k2 == 1 else (k2 + 4) * b], (4 + 2 * k2) * b),
    "G2": lambda b, k2: (6 * b, 6 * b + 0.25, 8 * b + 0.25),
}
WRONG = {2: 0.01, 4: 0.001}  # share of spikes that rounding may flip, by bytes of a value
OFF = {2: 0.05, 4: 1e-4}  # a gradient's error over the greatest gradient, that rounding explains
OFF_SHARE = 10  # a flipped spike reaches several values of the gradient: their share over that of spikes


def layer_of(case: SeamCase, device: str, neuron: str | None = None) -> SpikingLayer:
    """The seam's norm, gates and neuron, with weights that fire; its statistics stay as they are."""
    width = case.step[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(width, momentum=0.0)
        nn.init.uniform_(norm.weight, 1, 3)
        nn.init.normal_(norm.bias, std=0.3)
        gates = attention(case.attention, channels=width, steps=case.steps, channel_ratio=8, temporal_ratio=5)
        with torch.no_grad():
            for weight in gates.parameters():
                weight.mul_(0.1)  # gates near a half: a tenth of the neurons fires, some near every threshold
    spiking = PRESETS[neuron or case.neuron]("fused")
    layer = SpikingLayer(None, spiking, norm=norm, pool=case.pool, attention=gates, membrane=case.residual)
    return layer.to(device)


@dataclass(frozen=True)
class Tensors:
    """Of a case: z [T, N, C, H, W] and the shortcut, and the dense gradients of spikes and membrane, of the
    pooled maps' shape; shortcut and membrane where the seam is residual.
    """

    inputs: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]

    @classmethod
    def of(cls, case: SeamCase, dtype: torch.dtype, device: str) -> "Tensors":
        n, c, *sides = case.step
        pooled = replace(case, step=(n, c, *(side // case.pool for side in sides)))
        more = 2 if case.residual else 1
        z, shortcut = case.normal(dtype, device), pooled.normal(dtype, device, 1)
        grads = tuple(pooled.normal(dtype, device, seed) for seed in (2, 3)[:more])
        return cls((z, shortcut)[:more], grads)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Tensors":
        return Tensors(tuple(map(change, self.inputs)), tuple(map(change, self.grads)))

    def leaves(self) -> list[Tensor]:
        return [x.detach().requires_grad_() for x in self.inputs]


def rows_of(seam: Seam, layer: SpikingLayer, tensors: Tensors) -> dict[str, Callable]:
    """What is timed of a seam, by ROWS."""
    leaves, grads = tensors.leaves(), tensors.grads
    wanted = [*leaves, *layer.parameters()]

    def inference() -> None:
        layer.eval()
        with torch.no_grad():
            seam(*tensors.inputs)

    def training() -> None:
        layer.train()
        seam(*leaves)

    def step() -> None:
        layer.train()
        for leaf in wanted:
            leaf.grad = None
        torch.autograd.backward(seam(*leaves)[: len(grads)], grads)

    return dict(zip(ROWS, (inference, training, step), strict=True))


# ---- before anything is timed


def results_of(seam: Seam, layer: SpikingLayer, tensors: Tensors) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(spikes of inference, spikes of training, gradients of the inputs)."""
    layer.eval()
    with torch.no_grad():
        quiet, _ = seam(*tensors.inputs)
    layer.train()
    leaves = tensors.leaves()
    outputs = seam(*leaves)
    torch.autograd.backward(outputs[: len(tensors.grads)], tensors.grads)
    return quiet, outputs[0].detach(), [leaf.grad for leaf in leaves]


@dataclass(frozen=True)
class Exact:
    """What float64 makes of the first samples of a case, as a batch of their own."""

    tensors: Tensors
    results: tuple[Tensor, Tensor, list[Tensor]]

    @classmethod
    def of(cls, layer: SpikingLayer, tensors: Tensors) -> "Exact":
        z = tensors.inputs[0]
        samples = max(1, z.shape[1] * peers.CHECKED // z.numel())
        few = tensors.each(lambda x: x[:, :samples])
        wide = copy.deepcopy(layer).double()
        return cls(few, results_of(peers._reference_seam(wide, z), wide, few.each(Tensor.double)))


def check(seam: Seam, layer: SpikingLayer, exact: Exact) -> int:
    """Spikes of training that differ from those of float64. Raises GapError for more than rounding explains,
    there or in inference, and for another gradient.
    """
    size = exact.tensors.inputs[0].element_size()
    *spikes, grads = results_of(seam, layer, exact.tensors)
    for ours, right in zip(spikes, exact.results[:2], strict=True):
        mismatches = int((ours.double() != right).sum())
        if mismatches > WRONG[size] * right.numel():
            raise GapError(f"refused: {mismatches} of {right.numel()} spikes are not those of float64")
    for ours, right in zip(grads, exact.results[2], strict=True):
        off = (ours.double() - right).abs() > OFF[size] * right.abs().max()
        share = off.double().mean().item()
        if share > OFF_SHARE * WRONG[size]:
            raise GapError(f"refused: {share:.1%} of the gradient is not that of float64")
    return mismatches


# ---- cases


def measure_case(
    case: SeamCase, dtype: str, columns: list[str], device: str, ready: float, **how
) -> list[dict]:
    """The lines of one case. `ready`: seconds that a column may take to be so; `how`: of harness.measure."""
    about = harness.surroundings("seams", device) | {"case": case.name, "dtype": dtype, "neuron": case.neuron}
    prepare = _network(case, dtype, device) if case.group == "M1" else _seam(case, dtype, device)
    lines, found = [], {}
    for name in columns:
        column = SEAM_COLUMNS[name]
        if case.group not in column.serves:
            continue
        try:
            found[name] = column.ready(partial(prepare, column), ready)
        except GapError as gap:
            lines.append({**about, "column": name, "row": None, "gap": str(gap)})
    z = case.normal(cases.DTYPES[dtype], device)
    return lines + harness.figures(about, found, OURS, device, copy=z, floors=floors_of(case, z), **how)


def floors_of(case: SeamCase, z: Tensor) -> dict[str, int | None]:
    """Bytes that must be moved at the least, by row."""
    if case.group == "M1":
        return {"step": None}
    inference, training, backward = FLOOR[case.group](z.element_size(), case.pool**2)
    values = (inference, training, training + backward)
    return {row: int(value * case.neurons) for row, value in zip(ROWS, values, strict=True)}


def _seam(case: SeamCase, dtype: str, device: str) -> Callable[[peers.Column], Ready]:
    tensors = Tensors.of(case, cases.DTYPES[dtype], device)
    exact: dict[str, Exact] = {}  # by neuron

    def prepare(column: peers.Column) -> Ready:
        neuron = column.neuron or case.neuron
        layer = layer_of(case, device, neuron)
        if neuron not in exact:
            exact[neuron] = Exact.of(layer, tensors)
        seam = column.make(layer, tensors.inputs[0])
        mismatches = check(seam, layer, exact[neuron])
        for function in rows_of(seam, layer, tensors).values():
            function()
        leaves = tensors.leaves()
        note = column.note if neuron == case.neuron else f"{column.note}; {neuron}, not {case.neuron}"
        # Backward's first pass reads p forward and back, but where bits or the membrane are kept.
        twice = column.name == OURS and device == "cuda" and not case.residual
        again = tensors.grads[0].nbytes if twice else 0
        return Ready(
            rows=partial(rows_of, seam, layer, tensors),
            forward=partial(seam, *leaves),
            inputs=[*leaves, *layer.parameters()],
            about={"mismatches": mismatches, "note": note},
            counts=column.counts,
            inside={"step": again},
        )

    return prepare


# ---- a whole network


def _network(case: SeamCase, dtype: str, device: str) -> Callable[[peers.Column], Ready]:
    """MA-SNN for frames of the case, its layers made by a column."""
    frames = (case.normal(torch.float32, device) > 1).float()  # a sixth of the pixels saw an event
    labels = torch.arange(case.step[0], device=device) % 11
    autocast = partial(torch.autocast, device, cases.DTYPES[dtype], enabled=dtype != "fp32")

    def logits_of(net: nn.Module) -> Tensor:
        with autocast():
            return net(frames.to(next(net.parameters()).dtype)).double()

    def step(net: nn.Module) -> None:
        net.zero_grad()
        F.cross_entropy(logits_of(net), labels).backward()

    exact = made_of(SEAM_COLUMNS["backend=reference"], case).double().to(device)
    right, most = logits_of(exact.train()).detach(), 10 * WRONG[4 if dtype == "fp32" else 2]

    def prepare(column: peers.Column) -> Ready:
        net = made_of(column, case).to(device).train()
        off = (logits_of(net).detach() - right).abs()
        mismatches = round(case.steps * off.sum().item())
        if off.mean() > most:
            raise GapError(f"refused: the network's rates are {off.mean():.3f} off those of float64")
        about = {"mismatches": mismatches, "note": column.note}
        return Ready(
            lambda: {"step": partial(step, net)}, partial(logits_of, net), [*net.parameters(), frames], about
        )

    return prepare


def made_of(column: peers.Column, case: SeamCase) -> nn.Module:
    """MA-SNN with its layers as the column computes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = {"attention": case.attention, "steps": case.steps, "size": case.step[-1]}
        net = models.create(
            "ma_snn_dvs_gesture", **words, backend="fused" if column.name == OURS else "reference"
        )
        layers = [layer for layer in net.modules() if isinstance(layer, SpikingLayer)]
        for layer in layers:
            nn.init.uniform_(layer.norm.weight, 1, 3)
    for layer in layers:
        seam = column.make(layer, None)
        layer.forward = lambda x, seam=seam: seam(x)[0]
    return net


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and adds to the results."""
    from bench import report

    parser = harness.parser(__doc__, SEAM_COLUMNS, budget=1.0)
    words = "seconds that a column may take until it can be timed, its check among them"
    parser.add_argument("--ready", type=float, default=peers.READY_SECONDS, help=words)
    chosen = harness.parse(parser, arguments)
    how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
    some = cases.select(cases.SEAM_SMOKE if chosen.smoke else cases.SEAMS[chosen.device], chosen.case)
    measured = (
        measure_case(case, dtype, chosen.columns, chosen.device, chosen.ready, **how)
        for case, dtype in itertools.product(some, chosen.dtype)
    )
    harness.record(measured, report.case_table, chosen)


if __name__ == "__main__":
    main()
