"""Networks of SpikingJelly and snnTorch as they are, compiled, and after `attsnn.accelerate`.

python bench/accelerate.py [--device cpu|cuda] [--case SEW ...] [--columns ...] [--threads 2] [--smoke]

Rows: a training step and an inference, each from a state that was reset. `accelerate` verifies the outputs
before anything is timed. Peak memory is that of a training step, on a GPU. Nothing is recorded. A column that
cannot run says why. Needs the peers: make bench-peers.
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

from attsnn import accelerate
from bench import harness, tables
from bench.peers import OURS

COLUMNS = ("as it is", "torch.compile", OURS)


@dataclass(frozen=True)
class Case:
    """A network, what resets it, and its input."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    smoke: tuple[int, ...]
    reset: Callable[[nn.Module], object] = lambda net: None


def _jelly(module: str, name: str, **how) -> nn.Module:
    from importlib import import_module

    from spikingjelly.activation_based import functional, neuron, surrogate

    how = {
        "spiking_neuron": neuron.IFNode,
        "surrogate_function": surrogate.ATan(),
        "detach_reset": True,
        **how,
    }
    net = getattr(import_module(f"spikingjelly.activation_based.model.{module}"), name)(num_classes=10, **how)
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


def measure(case: Case, chosen) -> list[tuple[str, ...]]:
    """Rows of the table."""
    torch.manual_seed(0)
    x = torch.rand(case.smoke if chosen.smoke else case.shape).to(chosen.device)
    net, rows, gaps = case.make().to(chosen.device), {}, {}
    for column in chosen.columns:
        own = copy.deepcopy(net)
        if column == OURS:
            accelerate(own, x)
        called = torch.compile(own) if column == "torch.compile" else own
        found = functions(own, case, x, called)
        try:
            for function in found.values():
                function()
        except Exception as error:  # what a compiler says has no common type
            gaps[column] = type(error).__name__
            continue
        rows[column] = found
    shown = []
    for what in ("training step", "inference"):
        how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
        times = harness.measure(
            {c: r[what] for c, r in rows.items()}, chosen.device, **{**how, "flush": False}
        )
        own = times.get(OURS)
        cells = []
        for column in chosen.columns:
            if column in gaps:
                cells.append(gaps[column])
            elif own is None or column == OURS:
                cells.append(f"{tables.ms(times[column].median)} ms")
            else:
                ratio = times[column].median / own.median
                cells.append(f"{tables.ms(times[column].median)} ms, {ratio:.2f}x")
        shown.append((f"{case.name}, {what}", *cells))
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    chosen = harness.parse(harness.parser(__doc__, COLUMNS, budget=8.0), arguments)
    rows = [
        row
        for case in CASES
        if not chosen.case or any(word in case.name for word in chosen.case)
        for row in measure(case, chosen)
    ]
    print(tables.table(("network", *chosen.columns), rows))


if __name__ == "__main__":
    main()
