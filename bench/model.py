"""Whole networks: ours, PyTorch compositions, the best peer neuron in the same network, and the convolutions
alone, whose time no column can go below (N1); and networks of the papers beside those that SpikingJelly ships
(S1, bench/shipped.py).

python bench/model.py [--device cpu|cuda] [--dtype fp32 bf16 ...] [--case MS-ResNet-18 ...] [--smoke]

Rows: inference, and a training step, which is forward, cross entropy and backward. Beside the times stand
memory, and of N1 images a second, what is left without the convolutions, by the profiler and by the clock,
and the largest batch whose step fits into --memory.
"""

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from attsnn.attention import Attention
from bench import cases, harness, networks, shipped
from bench.cases import DTYPES, ModelCase, ShippedCase
from bench.harness import Ready
from bench.networks import CONVOLUTIONS, MODEL_COLUMNS, Network, NetworkColumn
from bench.peers import OURS, GapError
from bench.shipped import SHIPPED_COLUMNS
from bench.tables import parts_table

ROWS = ("forward", "step")
READY_SECONDS = 240
CAP = 60.0  # of harness.measure: a round of a whole network takes seconds
ROUNDS = 21  # over a minute or two: the machine that this was made on has spells of half a minute
EXACT = 1e-9, 1e-6  # logits and gradients in float64, over the spread of logits and the greatest gradient
SMALL = 4, 32  # images and their sides, on which the columns are compared in float64
# Logits in the type that is measured, over their spread. One spike at its threshold makes two correct runs
# part ways; answers that have nothing to do with each other are 0.8 and more apart.
OFF = {"fp64": 1e-6, "fp32": 0.2, "16 bit": 0.4}


# ---- before anything is timed


@dataclass(frozen=True)
class Right:
    """What the reference makes of a case in float64: of a few small images, and of the case's own."""

    small: tuple[Tensor, Tensor, list[Tensor]]
    logits: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, case: ModelCase, neuron: str | None, images: Tensor) -> "Right":
        column = NetworkColumn("backend=reference", networks._ours, neuron=neuron)
        net = Network.of(column, case, torch.float64, images.device.type)
        with torch.no_grad():
            logits = net.train(images.double()), net.infer(images.double())
        return cls(_small(column, case), logits)


def _small(column: NetworkColumn, case: ModelCase) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits of training and of inference, and the gradients, of small images in float64 on the CPU."""
    count, side = SMALL
    case = replace(case, step=(count, 3, side, side))
    images, labels = case.images(torch.float64, "cpu"), torch.arange(count)
    net = Network.of(replace(column, compiled=False), case, torch.float64, "cpu")
    logits = net.train(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), net.infer(images), [p.grad for p in net.parameters]


def check(column: NetworkColumn, case: ModelCase, right: Right) -> None:
    """Raises GapError unless the column computes the network: in float64, to rounding."""
    *logits, grads = _small(column, case)
    for ours, wanted in zip(logits, right.small[:2], strict=True):
        if (off := _off(ours, wanted)) > EXACT[0]:
            raise GapError(f"refused: in float64 the logits are {off:.1g} of their spread off")
    for ours, wanted in zip(grads, right.small[2], strict=True):
        if (ours - wanted).abs().max() > EXACT[1] * wanted.abs().max():
            raise GapError("refused: a gradient is not that of the reference in float64")


def check_logits(net: Network, images: Tensor, right: Right, most: float) -> float:
    """How far the logits are off those of float64, at most `most`. Raises GapError."""
    found = net.train(images).detach(), net.infer(images)
    off = max(_off(ours, wanted) for ours, wanted in zip(found, right.logits, strict=True))
    if not off <= most:
        raise GapError(f"refused: the logits are {off:.2g} of their spread off those of float64")
    return off


def _off(ours: Tensor, wanted: Tensor) -> float:
    return ((ours.double() - wanted).abs().mean() / wanted.std()).item()


# ---- the convolutions alone


@dataclass(frozen=True)
class Convolutions:
    """The convolutions and linear layers that a call of a network runs, each with its input."""

    calls: tuple[tuple[nn.Module, Tensor], ...]

    @classmethod
    def of(cls, module: nn.Module, call: Callable[[], object]) -> "Convolutions":
        calls = []

        def remember(layer: nn.Module, args: tuple[Tensor]) -> None:
            calls.append((layer, args[0].detach().requires_grad_(args[0].requires_grad)))

        # What a gate's layers compute is a part of ours, which a hook on them would take apart.
        gates = (m for m in module.modules() if isinstance(m, Attention))
        inside = {inner for gate in gates for inner in gate.modules()}
        layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in inside]
        handles = [layer.register_forward_pre_hook(remember) for layer in layers]
        try:
            call()
        finally:
            for handle in handles:
                handle.remove()
        return cls(tuple(calls))

    def forward(self) -> list[Tensor]:
        return [layer(x) for layer, x in self.calls]

    def multiplications(self) -> int:
        """Multiplications and additions of a forward pass, which count as one."""
        with torch.no_grad():
            outputs = [out.shape[0] * out[0].numel() for out in self.forward()]
        return sum(n * layer.weight[0].numel() for n, (layer, _) in zip(outputs, self.calls, strict=True))

    def step(self, grads: list[Tensor]) -> None:
        """Forward and backward: the gradients of all weights, and of the inputs that have one."""
        for layer, x in self.calls:
            layer.zero_grad()
            x.grad = None
        torch.autograd.backward(self.forward(), grads)


def convolutions_of(net: Network, cast: Callable, images: Tensor) -> Ready:
    """Those of our network, which convolves a static image once."""
    quiet = Convolutions.of(net.inference, partial(net.infer, images))
    trained = Convolutions.of(net.training, partial(net.train, images))
    with torch.no_grad(), cast():
        shapes = trained.forward()
    grads = [torch.randn_like(out) for out in shapes]

    def infer() -> None:
        with torch.no_grad(), cast():
            quiet.forward()

    def step() -> None:
        with cast():
            trained.step(grads)

    about = {"mismatches": None, "note": ""}
    return Ready(lambda: {"forward": infer, "step": step}, infer, (), about, counts=False)


CONVOLUTION_OPS = "aten::convolution", "aten::convolution_backward"


def outside(call: Callable[[], object]) -> float:
    """Seconds of a call that are in no convolution, on the CPU: the profiler says what those take, with all
    that they call. Steadier than a difference of two calls, for both are of the same one; of convolutions as
    they run within this network, which is not quite as they run alone.
    """
    with profile(activities=[ProfilerActivity.CPU]) as seen, harness.collector_off():
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
    return seconds - 1e-6 * sum(e.cpu_time_total for e in seen.events() if e.name in CONVOLUTION_OPS)


def measure_outside(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """`outside` of each function, in turns and behind overwritten caches, as harness.measure does it."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    junk = harness.junk_of("cpu")
    for call in functions.values():
        outside(call)
    for order in itertools.islice(harness.turns(functions), rounds):
        for name in order:
            junk.fill_(1)
            found[name].append(outside(functions[name]))
    return found


# ---- memory


def largest(fits: Callable[[int], bool], guess: int) -> int:
    """The largest n for which `fits`, found to a thirty-second, from a guess; 0: not even 1."""
    low, high = 0, 0
    n = max(1, guess)
    while fits(n):
        low, n = n, 2 * n
    high = n
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_batch(net: Network, step: Callable[[int], None], peak: int, case: ModelCase, gib: float) -> int:
    """Of the training steps that fit into `gib` GiB with the weights and the images. On the CPU from the
    peaks of two batches, by a line; on a GPU by trying.
    """
    n, device = case.step[0], net.parameters[0].device.type
    own = sum(t.nbytes for t in itertools.chain(net.training.parameters(), net.training.buffers()))
    image = case.images(torch.float32, "cpu", 1).nbytes
    half = max(1, n // 2)
    net.training.zero_grad()
    less = harness.peak_bytes(partial(step, half), device)
    slope = (peak - less) / max(1, n - half)
    guess = int((gib * 2**30 - own - (peak - n * slope)) / (slope + image)) if slope > 0 else n
    if device == "cpu":
        return guess
    net.training.zero_grad()
    torch.cuda.empty_cache()
    allowed = gib * 2**30 + torch.cuda.memory_reserved() - own

    def fits(batch: int) -> bool:
        torch.cuda.empty_cache()
        try:
            step(batch)
        except torch.OutOfMemoryError:
            return False
        return True

    try:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, allowed / torch.cuda.get_device_properties(0).total_memory)
        )
        return largest(fits, guess)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        net.training.zero_grad()
        torch.cuda.empty_cache()


# ---- cases


def measure_case(
    case: ModelCase, dtype: str, columns: list[str], device: str, ready: float, gib: float, rounds: int, **how
) -> list[dict]:
    """The lines of one case. `ready`: seconds that a column may take to be so; `gib`: the memory for which
    the largest batch is sought; `rounds`: how often each column's time outside of convolutions is taken;
    `how`: of harness.measure.
    """
    about = harness.surroundings("model", device) | {"case": case.name, "dtype": dtype, "neuron": case.neuron}
    about |= {"images": case.step[0], "memory_gib": gib}
    kind, cast = harness.narrow(dtype, device)
    autocast = None if DTYPES[dtype] is kind else DTYPES[dtype]
    images = case.images(kind, device)
    most = OFF["16 bit" if autocast or (device == "cuda" and dtype == "fp32") else dtype]  # TF32
    right: dict[str | None, Right] = {}
    nets: dict[str, Network] = {}

    def step(net: Network, batch: int | None = None) -> None:
        some = images if batch in (None, case.step[0]) else case.images(kind, device, batch)
        net.step(some, torch.arange(some.shape[0], device=device) % 1000)

    def rows(net: Network) -> dict[str, Callable]:
        net.training.zero_grad()
        return {"forward": partial(net.infer, images), "step": partial(step, net)}

    def prepare(column: NetworkColumn) -> Ready:
        if column.neuron not in right:
            right[column.neuron] = Right.of(case, column.neuron, images)
        check(column, case, right[column.neuron])
        net = Network.of(column, case, kind, device, autocast)
        off = check_logits(net, images, right[column.neuron], most)
        for function in rows(net).values():
            function()
        nets[column.name] = net
        kept = [*net.parameters, images]
        about = {"mismatches": None, "off": off, "note": column.note}
        return Ready(partial(rows, net), partial(net.train, images), kept, about, counts=False)

    lines, found = [], {}
    ours = Network.of(MODEL_COLUMNS[OURS], case, kind, device, autocast)
    convolutions = {CONVOLUTIONS: convolutions_of(ours, cast, images)}
    for name in columns:
        column = MODEL_COLUMNS[name]
        try:
            found[name] = column.ready(partial(prepare, column), ready)
        except GapError as gap:
            lines.append({**about, "column": name, "row": None, "gap": str(gap)})
    floors = dict.fromkeys(ROWS)
    how |= {"ahead": False, "copy": images, "floors": floors}  # a step as it is taken, its launches too
    figures = harness.figures(about, {**convolutions, **found}, OURS, device, **how)
    with cast():
        multiplications = Convolutions.of(ours.training, partial(ours.train, images)).multiplications()
    by_row = {
        row: measure_outside({name: rows(net)[row] for name, net in nets.items()}, rounds)
        for row in (ROWS if device == "cpu" else ())
    }
    for line in figures:
        name = line["column"]
        if name in nets and line["row"] in by_row:
            line["outside"] = by_row[line["row"]][name]
        if name == CONVOLUTIONS:
            line["multiplications"] = multiplications
        if line["row"] == "step" and name in nets and not MODEL_COLUMNS[name].compiled:
            net = nets[name]
            line["largest_batch"] = largest_batch(net, partial(step, net), line["peak_bytes"], case, gib)
    return lines + figures


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and adds to the results."""
    from bench import report

    parser = harness.parser(__doc__, {**MODEL_COLUMNS, **SHIPPED_COLUMNS}, budget=20.0, cap=CAP)
    words = "seconds that a column may take until it can be timed, its check among them"
    parser.add_argument("--ready", type=float, default=READY_SECONDS, help=words)
    words = "for which the largest batch of a training step is sought"
    parser.add_argument("--memory", type=float, default=16.0, metavar="GIB", help=words)
    chosen = harness.parse(parser, arguments)
    how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
    kinds = (
        (cases.MODEL_SMOKE, cases.SHIPPED_SMOKE)
        if chosen.smoke
        else (cases.N1[chosen.device], cases.SHIPPED[chosen.device])
    )
    some = cases.select([*kinds[0], *kinds[1]], chosen.case)
    rounds = 1 if chosen.smoke else ROUNDS

    def measured(case: cases.Case, dtype: str) -> list[dict]:
        if isinstance(case, ShippedCase):
            columns = [name for name in chosen.columns if name in SHIPPED_COLUMNS]
            return shipped.measure_case(case, dtype, columns, chosen.device, chosen.ready, **how)
        columns = [name for name in chosen.columns if name in MODEL_COLUMNS]
        memory = chosen.memory
        return measure_case(case, dtype, columns, chosen.device, chosen.ready, memory, rounds, **how)

    def show(lines: list[dict]) -> str:
        return (parts_table if lines[0]["bench"] == "shipped" else report.model_table)(lines)

    pairs = itertools.product(some, chosen.dtype)
    harness.record((measured(case, dtype) for case, dtype in pairs), show, chosen)


if __name__ == "__main__":
    main()
