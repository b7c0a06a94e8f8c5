"""Networks of SpikingJelly and snnTorch as they are, compiled, and after `attsnn.accelerate`.

python bench/accelerate.py [--device cpu|cuda] [--dtype bf16] [--case SEW ...] [--columns ...] [--threads 2]
                           [--smoke]

Rows: a training step and an inference, each from a state that was reset, and beside them how many times as
fast as the network as it is; the peak memory of a step. `accelerate` verifies the outputs before anything is
timed. "Bare" is the network without norms and neurons, faster than which no kernel of theirs can make it.
Nothing is recorded. A column that cannot run says why. Needs the peers: make bench-peers.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import accelerate
from bench import harness, tables
from bench.peers import OURS, GapError

AS_IT_IS, COMPILED, FUSED, LAST, BARE = (
    "as it is", "torch.compile", f"{OURS}, fused", f"{OURS}, fused, channels-last", "bare",
)  # fmt: skip
COLUMNS = (AS_IT_IS, COMPILED, OURS, FUSED, LAST, BARE)


@dataclass(frozen=True)
class Case:
    """A network, what resets it, its input, and a small one, on which it is verified."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    smoke: tuple[int, ...]
    reset: Callable[[nn.Module], object] = lambda net: None
    device: str = ""  # that it is for alone


def _jelly(module: str, name: str, num_classes: int = 10, **how) -> nn.Module:
    from importlib import import_module

    from spikingjelly.activation_based import functional, neuron, surrogate

    how = {
        "spiking_neuron": neuron.IFNode,
        "surrogate_function": surrogate.ATan(),
        "detach_reset": True,
        **how,
    }
    net = getattr(import_module(f"spikingjelly.activation_based.model.{module}"), name)(
        num_classes=num_classes, **how
    )
    functional.set_step_mode(net, "m")
    return net


def _reset(net: nn.Module) -> None:
    from spikingjelly.activation_based import functional

    functional.reset_net(net)


class Tutorial(nn.Module):
    """snnTorch's convolutional network for MNIST, which steps through time itself."""

    def __init__(self, steps: int = 25):
        super().__init__()
        import snntorch
        from snntorch import surrogate

        how = {"beta": 0.5, "spike_grad": surrogate.fast_sigmoid(25)}
        self.conv1, self.lif1 = nn.Conv2d(1, 12, 5), snntorch.Leaky(**how)
        self.conv2, self.lif2 = nn.Conv2d(12, 64, 5), snntorch.Leaky(**how)
        self.fc, self.lif3 = nn.Linear(64 * 4 * 4, 10), snntorch.Leaky(**how)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        found = []
        for _ in range(self.steps):
            spikes, first = self.lif1(nn.functional.max_pool2d(self.conv1(x), 2), first)
            spikes, second = self.lif2(nn.functional.max_pool2d(self.conv2(spikes), 2), second)
            spikes, third = self.lif3(self.fc(spikes.flatten(1)), third)
            found.append(spikes)
        return torch.stack(found)


CASES = (
    Case("SEW-ResNet18, T=4", lambda: _jelly("sew_resnet", "sew_resnet18", cnf="ADD"), (4, 8, 3, 64, 64),
         (2, 1, 3, 32, 32), _reset),
    # The row of SpikingJelly's own comparison of its backends (pull request 740), with --dtype bf16.
    Case("SEW-ResNet18 at 224, T=4", lambda: _jelly("sew_resnet", "sew_resnet18", 1000, cnf="ADD"),
         (4, 112, 3, 224, 224), (2, 1, 3, 32, 32), _reset, "cuda"),
    Case("Spikformer for CIFAR-10, T=4", lambda: _jelly("spikformer", "spikformer_cifar10", T=4),
         (4, 4, 3, 32, 32), (4, 1, 3, 32, 32), _reset),
    Case("snnTorch's tutorial network, 25 steps", Tutorial, (32, 1, 28, 28), (2, 1, 28, 28)),
)  # fmt: skip


def functions(net: nn.Module, case: Case, x: Tensor, called: nn.Module) -> dict[str, Callable[[], object]]:
    """A training step and an inference."""

    def step() -> None:
        case.reset(net)
        net.train().zero_grad()
        called(x).mean(0).square().sum().backward()

    @torch.no_grad()
    def inference() -> Tensor:
        case.reset(net)
        net.eval()
        return called(x)

    return {"training step": step, "inference": inference}


def column(name: str, net: nn.Module, example: Tensor) -> tuple[nn.Module, nn.Module]:
    """A copy of the network as that column has it, and what is called."""
    own = copy.deepcopy(net)
    if name == BARE:
        lines = accelerate(own, dry_run=True).lines
        if any(line.was.startswith("snntorch") for line in lines):
            raise GapError("its neurons return their membranes, too, so that they cannot be left out")
        neurons = {line.name for line in lines}
        norms = {key for key, module in own.named_modules() if isinstance(module, _BatchNorm)}
        for key in neurons | norms:
            own.set_submodule(key, nn.Identity())
    if name == LAST:
        own = own.to(memory_format=torch.channels_last)
    if name in (OURS, FUSED, LAST):
        accelerate(own, example, fuse=name != OURS)
    return own, torch.compile(own) if name == COMPILED else own


def measure(case: Case, chosen, dtype: str) -> list[tuple[str, ...]]:
    """Rows of the table."""
    torch.manual_seed(0)
    kind = {"device": chosen.device, "dtype": harness.DTYPES[dtype]}
    x, example = (torch.rand(shape, **kind) for shape in (case.shape, case.smoke))
    net, rows, gaps = case.make().to(**kind), {}, {}
    for name in chosen.columns:
        try:
            own, called = column(name, net, example)
            rows[name] = functions(own, case, example if chosen.smoke else x, called)
            for function in rows[name].values():
                function()
        except Exception as error:  # what a compiler says has no common type
            gaps[name] = "-"
            print(f"{case.name}, {name}: {type(error).__name__}: {error}")
            rows.pop(name, None)
    shown = []
    for what in ("training step", "inference"):
        how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
        timed = {name: row[what] for name, row in rows.items()}
        times = harness.measure(timed, chosen.device, **{**how, "flush": False})
        first = times.get(AS_IT_IS)
        cells = []
        for name in chosen.columns:
            own = times.get(name)
            ratio = f", {first.median / own.median:.2f}x" if own and first and name != AS_IT_IS else ""
            cells.append(f"{tables.ms(own.median)} ms{ratio}" if own else gaps[name])
        shown.append((f"{case.name}, {dtype}, {what}", *cells))
    peaks = {name: harness.peak_bytes(row["training step"], chosen.device) for name, row in rows.items()}
    cells = [f"{tables.mib(peaks[name])} MiB" if name in peaks else "" for name in chosen.columns]
    return [*shown, (f"{case.name}, {dtype}, peak of a step", *cells)]


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    chosen = harness.parse(harness.parser(__doc__, COLUMNS, budget=8.0), arguments)
    rows = [
        row
        for case in CASES
        if case.device in ("", chosen.device)
        and (not chosen.case or any(word in case.name for word in chosen.case))
        for dtype in chosen.dtype
        for row in measure(case, chosen, dtype)
    ]
    print(tables.table(("network", *chosen.columns), rows))


if __name__ == "__main__":
    main()
