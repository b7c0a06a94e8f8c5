"""A step of a network that streams, beside a whole window: latency and memory, by the steps before it.

python bench/stream.py [--device cpu|cuda] [--case gesture ...] [--threads 1] [--smoke]

Rows: T steps, the last of which is measured, from the state that the ones before left, and the whole window
of T again, as who keeps no state must compute it to know as much. Before anything is timed both are compared
in float64. Results are added to the same files.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
from torch import Tensor, nn

from attsnn import models
from bench import cases, harness, tables
from bench.harness import Ready
from bench.peers import OURS, GapError

COLUMNS = tables.STREAM_COLUMNS
STEPS = 20, 60, 240
EXACT = 1e-9  # of the scores of a step in float64


@dataclass(frozen=True)
class StreamCase:
    name: str
    model: str
    frames: tuple[int, int, int]  # of one step, [2, H, W]
    keywords: dict
    steps: tuple[int, ...] = STEPS

    def net(self, device: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = models.create(self.model, attention=None, **self.keywords)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.bias, 0.5)  # else nothing fires far from the frames
        return net.to(device).eval()

    def window(self, device: str, steps: int) -> Tensor:
        """Counts of events [T, 1, 2, H, W], most of them 0."""
        rate = torch.full((steps, 1, *self.frames), 0.1)
        return torch.poisson(rate, torch.Generator().manual_seed(1)).to(device)


CASES = [
    StreamCase("gesture, MA-SNN, 32x32", "ma_snn_dvs_gesture", (2, 32, 32), {"size": 32}),
    StreamCase("cifar10_dvs, MA-SNN, 128x128", "ma_snn_cifar10_dvs", (2, 128, 128), {}),
]
SMOKE = [
    StreamCase("smoke, MA-SNN, 8x8", "ma_snn_dvs_gesture", (2, 8, 8), {"size": 8, "width": 0.125}, (3, 9))
]


def check(case: StreamCase) -> None:
    """Raises GapError unless the last step is that of the whole window, in float64."""
    net, x = case.net("cpu").double(), case.window("cpu", 9).double()
    with torch.no_grad():
        whole, _ = net.run(x)
        last, _ = net.run(x[-1:], net.run(x[:-1])[1])
    if not torch.allclose(last, whole[-1:], rtol=EXACT, atol=EXACT):
        raise GapError("refused: a step is not that of the window in float64")


def measure_case(case: StreamCase, columns: list[str], device: str, **how) -> list[dict]:
    about = harness.surroundings("stream", device) | {"case": case.name, "dtype": "fp32", "neuron": "ma_snn"}
    check(case)
    net = case.net(device)
    windows = {steps: case.window(device, steps) for steps in case.steps}
    with torch.no_grad():
        states = {steps: net.run(x[:-1])[1] for steps, x in windows.items()}

    @torch.no_grad()
    def step(steps: int) -> None:
        net.run(windows[steps][-1:], states[steps])

    @torch.no_grad()
    def window(steps: int) -> None:
        net(windows[steps])

    def ready(call) -> Ready:
        rows = {f"T = {steps}": partial(call, steps) for steps in case.steps}
        return Ready(lambda: rows, partial(call, case.steps[0]), [], {"note": ""}, counts=False)

    found = {name: ready(call) for name, call in zip(COLUMNS, (step, window), strict=True) if name in columns}
    floors = dict.fromkeys(f"T = {steps}" for steps in case.steps)
    how |= {"ahead": False}  # the latency of a step is what a user waits for, launches too
    copy = windows[case.steps[0]]
    lines = harness.figures(about, found, OURS, device, copy=copy, floors=floors, **how)
    bytes_of_state = sum(v.nbytes for v in states[case.steps[0]])
    return [{**line, "state_bytes": bytes_of_state} for line in lines]


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and adds to the results."""
    chosen = harness.parse(harness.parser(__doc__, COLUMNS, budget=10.0, cap=60.0), arguments)
    how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
    measured = (
        measure_case(case, chosen.columns, chosen.device, **how)
        for case in cases.select(SMOKE if chosen.smoke else CASES, chosen.case)
    )
    harness.record(measured, tables.stream_table, chosen)


if __name__ == "__main__":
    main()
