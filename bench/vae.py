"""The fully spiking VAE: ours, and the published structure on the same weights.

python bench/vae.py [--device cpu|cuda] [--case 32x32x3 ...] [--threads 1] [--smoke]

Rows: a training step (forward with scheduled sampling, loss, backward) with each way to draw prefixes,
generation, and its parts. Before anything is timed both are compared in float64, gradients and running
statistics too. With --default-memory freed memory goes back to the system, as in a program that asks for
nothing else. Results are added to the same files.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
from torch import Tensor

from attsnn import models
from attsnn.models.fsvae import FSVAE
from bench import cases, harness, tables
from bench.harness import Ready
from bench.peers import OURS, Column, GapError
from bench.published_vae import PublishedVAE, loss_of

SCHEDULED = 0.2  # the mean of a published training
ROWS = ("step", "generation", "prior", "decode")
EXACT = 1e-9  # of losses, gradients and running statistics in float64


@dataclass(frozen=True)
class VaeCase:
    name: str
    batch: int
    keywords: dict

    def net(self, device: str, backend: str = "auto", **changes) -> FSVAE:
        """As a training starts, its running statistics those of a batch: else nothing fires in evaluation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = models.create("fsvae", **{**self.keywords, **changes}, backend=backend).to(device)
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.5
        return net.train()

    def images(self, device: str, count: int | None = None) -> Tensor:
        channels, side = self.keywords["in_channels"], self.keywords["size"]
        shape = count or self.batch, channels, side, side
        return torch.rand(shape, generator=torch.Generator().manual_seed(1)).mul(2).sub(1).to(device)


_FULL = {"in_channels": 3, "size": 32, "steps": 16}
_TINY = {"in_channels": 1, "size": 8, "steps": 7, "latent": 4, "k": 3, "widths": (4, 6), "hidden": (8, 8)}
CASES = {
    "cpu": [VaeCase("32x32x3, T = 16, batch 32", 32, _FULL)],
    "cuda": [VaeCase("32x32x3, T = 16, batch 250", 250, _FULL)],
}
SMOKE = [VaeCase("smoke 8x8x1, T = 7, batch 3", 3, _TINY)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def our_step(net: FSVAE, images: Tensor) -> Tensor:
    return sum(models.fsvae.loss(net(images, SCHEDULED, seeded()), images))


def published_step(net: FSVAE, images: Tensor) -> Tensor:
    return loss_of(PublishedVAE(net).forward(images, SCHEDULED, seeded()), images)


@torch.no_grad()
def our_prior(net: FSVAE, n: int) -> Tensor:
    return net.sample_z(n, seeded())


COLUMNS = {
    column.name: column
    for column in (
        Column(OURS, partial(VaeCase.net)),
        Column("attsnn, running", partial(VaeCase.net, prefix="running"), note="prefixes step by step"),
        Column("published", partial(VaeCase.net)),
    )
}


def rows_of(column: Column, net: FSVAE, images: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by ROWS."""
    published = column.name == "published"
    loss = published_step if published else our_step
    quiet = copy.deepcopy(net).eval()
    z, theirs, n = our_prior(quiet, len(images)), PublishedVAE(quiet), len(images)

    def step() -> None:
        for parameter in net.parameters():
            parameter.grad = None
        loss(net, images).backward()

    def decode() -> None:
        with torch.no_grad():
            theirs.decode(z.permute(1, 2, 0)) if published else quiet.decode(z)

    prior = partial(theirs.sample_z if published else quiet.sample_z, n)
    generation = partial(theirs.sample if published else quiet.sample, n)
    return dict(zip(ROWS, (step, generation, prior, decode), strict=True))


def check(case: VaeCase) -> None:
    """Raises GapError unless ours and the published structure agree in float64, to rounding."""
    small = replace(case, keywords={**case.keywords, **{k: _TINY[k] for k in ("size", "widths", "hidden")}})
    ours, theirs = (small.net("cpu").double() for _ in range(2))
    images = small.images("cpu", 3).double()
    losses = our_step(ours, images), published_step(theirs, images)
    for loss in losses:
        loss.backward()
    pairs = [losses, *((a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))]
    pairs += zip(ours.buffers(), theirs.buffers(), strict=True)
    if not all(torch.allclose(a.double(), b.double(), rtol=EXACT, atol=EXACT) for a, b in pairs):
        raise GapError("refused: not what ours computes in float64")


def measure_case(case: VaeCase, name: str, columns: list[str], device: str, **how) -> list[dict]:
    """The lines of one case, by that name."""
    about = harness.surroundings("vae", device) | {"case": name, "dtype": "fp32", "neuron": "fsvae"}
    images, lines, found = case.images(device), [], {}
    check(case)

    def prepare(column: Column) -> Ready:
        net = column.make(case, device)
        our_step(net, images)  # statistics
        functions = rows_of(column, net, images)
        for function in functions.values():
            function()
        forward = partial(published_step if column.name == "published" else our_step, net, images)
        about = {"note": column.note}
        return Ready(lambda: functions, forward, list(net.parameters()), about, counts=False)

    for column in map(COLUMNS.get, columns):
        try:
            found[column.name] = column.ready(partial(prepare, column))
        except GapError as gap:
            lines.append({**about, "column": column.name, "row": None, "gap": str(gap)})
    floors = dict.fromkeys(ROWS)
    how |= {"ahead": False}  # a training step as it is taken, its launches too
    return lines + harness.figures(about, found, OURS, device, copy=images, floors=floors, **how)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and adds to the results."""
    parser = harness.parser(__doc__, COLUMNS, budget=10.0, cap=60.0)
    words = "leave to glibc what becomes of freed memory"
    parser.add_argument("--default-memory", action="store_true", help=words)
    chosen = harness.parse(parser, arguments)
    how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
    given_back = ", memory given back" if chosen.default_memory else ""
    measured = (
        measure_case(case, case.name + given_back, chosen.columns, chosen.device, **how)
        for case in cases.select(SMOKE if chosen.smoke else CASES[chosen.device], chosen.case)
    )
    harness.record(measured, tables.parts_table, chosen)


if __name__ == "__main__":
    main()
