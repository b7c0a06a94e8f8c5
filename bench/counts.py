"""What counting costs: the forward pass of a neuron and of a seam with `ops.counting` over that without.

python bench/counts.py [--device cpu|cuda] [--dtype fp32 bf16] [--threads 1] [--smoke]

Maps contiguous by channel and channels-last, far beyond the caches and within them; nothing is recorded.
Before anything is timed the counts are compared with the tensors.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
from torch import Tensor, nn

from attsnn import neurons, ops
from attsnn.layers import SpikingLayer
from bench import harness, tables
from bench.cases import DTYPES
from bench.peers import GapError

FAR = "beyond the caches"
PLACES = {FAR: (60, 4, 64, 32, 32), "in cache": (4, 2, 64, 16, 16)}
SMOKE = {"smoke": (3, 1, 8, 4, 4)}
NEURONS = {
    "LIF": neurons.leaky,
    "MS-ResNet": neurons.ms_resnet,
    "LIAF": lambda **how: neurons.ma_snn(emit="relu_membrane", **how),
    "I-LIF": neurons.ilif,
}


def functions(kind: str, make: Callable, x: Tensor) -> dict[str, Callable[[], object]]:
    """A forward pass as it is, and counted."""
    module = make(backend="fused")
    if kind == "seam":
        module = SpikingLayer(None, module, norm=nn.BatchNorm2d(x.shape[2]).to(x.device).eval())

    def plain() -> Tensor:
        return module(x)

    def counted() -> tuple[Tensor, ops.Counts]:
        with ops.counting() as found:
            return module(x), found[0]

    out, found = counted()
    values = out.long() if make is neurons.ilif else out != 0
    right = values.sum((1, 2, 3, 4)), values.sum((0, 1, 3, 4))
    if not all(map(torch.equal, (found.by_step, found.by_channel), right)):
        raise GapError("refused: not what is emitted")
    return {"plain": plain, "counted": counted}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    chosen = harness.parse(harness.parser(__doc__, (), budget=2.0), arguments)
    how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
    rows = []
    kinds = itertools.product(
        (SMOKE if chosen.smoke else PLACES).items(), ("neuron", "seam"), NEURONS.items()
    )
    for (place, shape), kind, (name, make) in kinds:
        if chosen.case and not any(word in f"{place} {kind} {name}" for word in chosen.case):
            continue
        for dtype, last in itertools.product(chosen.dtype, (False, True)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
            if last:
                x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
            x = x.to(chosen.device)
            times = harness.measure(functions(kind, make, x), chosen.device, **{**how, "flush": place == FAR})
            runs = zip(times["counted"].runs, times["plain"].runs, strict=True)
            low, middle, high = sorted(counted / plain for counted, plain in runs)
            layout = "channels-last" if last else "by channel"
            ratio = f"{middle:.3f}x ({low:.3f}-{high:.3f})"
            rows.append(
                (f"{kind}, {name}, {dtype}, {layout}, {place}", tables.ms(times["plain"].median), ratio)
            )
    print(tables.table(("forward", "ms", "counted / plain"), rows))


if __name__ == "__main__":
    main()
