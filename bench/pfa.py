"""Projected full attention: ours, the released loop over the ranks, and cleaned PyTorch compositions.

python bench/pfa.py [--device cpu|cuda] [--dtype fp32 ...] [--case P1 R8 ...] [--threads 1] [--warm] [--smoke]

Rows: inference, and forward + backward with every gradient. Tables read as those of bench/neuron.py; the
last one has, by layer and rank, the times of the others over ours, forward / forward + backward. With --warm,
each call follows one of the same column, as in a loop over it: in a network x was written just before.
Results are added to the same files.
"""

import copy
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import torch
from torch import Tensor

from attsnn.attention import PFA
from bench import cases, harness
from bench.cases import PfaCase
from bench.compositions import PFA_COLUMNS, Weighing
from bench.harness import Ready
from bench.peers import CHECKED, OURS, Column, GapError

ROWS = ("forward", "step")
# Values that must be moved at the least, a value of x: x for the means and x again, y; backward both, and
# twice, and x's gradient. Where the map is added a bit stands for x.
FLOOR = {"multiply": (3, 8), "add": (3, 6)}
WRONG = {2: 0.02, 4: 1e-4}  # errors over the greatest value that rounding explains, by bytes of a value


def module_of(case: PfaCase, device: str) -> PFA:
    """As a training starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rules = {"scale": "mean" if case.fusion == "multiply" else "sum", "fusion": case.fusion}
        return PFA(case.steps, case.step[1], case.rank, **rules, backend="fused").to(device)


def tensors_of(case: PfaCase, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """x, averages of spikes where the map multiplies and currents where it is added; and y's gradient."""
    x, grad = (case.normal(dtype, device, seed) for seed in (0, 1))
    return (x.clamp(-1, 3).add_(1).floor_().div_(4) if case.fusion == "multiply" else x), grad


def rows_of(weigh: Weighing, pfa: PFA, x: Tensor, grad: Tensor) -> dict[str, Callable]:
    """What is timed, by ROWS."""
    leaf = x.detach().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            weigh(x)

    def step() -> None:
        for tensor in (leaf, *pfa.parameters()):
            tensor.grad = None
        weigh(leaf).backward(grad)

    return dict(zip(ROWS, (forward, step), strict=True))


def results_of(weigh: Weighing, pfa: PFA, x: Tensor, grad: Tensor) -> list[Tensor]:
    """y, and the gradients of x and of the parameters."""
    pfa.zero_grad()
    leaf = x.detach().requires_grad_()
    out = weigh(leaf)
    out.backward(grad)
    return [out.detach(), leaf.grad, *(p.grad for p in pfa.parameters())]


def check(found: list[Tensor], exact: list[Tensor], size: int) -> None:
    """Raises GapError for what is not that of float64."""
    for ours, right in zip(found, exact, strict=True):
        error = ((ours.double() - right).abs().max() / right.abs().max()).item()
        if not error <= WRONG[size]:
            raise GapError(f"refused: {error:.1e} off float64")


def measure_case(
    case: PfaCase, dtype: str, columns: list[str], device: str, ready: float, **how
) -> list[dict]:
    """The lines of one case. `ready`: seconds that a column may take to be so; `how`: of harness.measure."""
    name = f"{case.name} warm" if how["again"] else case.name
    about = harness.surroundings("pfa", device) | {"case": name, "dtype": dtype, "neuron": case.fusion}
    x, grad = tensors_of(case, cases.DTYPES[dtype], device)
    pfa = module_of(case, device)
    samples = max(1, x.shape[1] * CHECKED // x.numel())
    few = x[:, :samples], grad[:, :samples]
    wide = copy.deepcopy(pfa).double()
    wide.backend = "reference"
    exact = results_of(wide, wide, *(tensor.double() for tensor in few))

    def prepare(column: Column) -> Ready:
        weigh = column.make(pfa, x)
        check(results_of(weigh, pfa, *few), exact, x.element_size())
        for function in rows_of(weigh, pfa, x, grad).values():
            function()
        leaf = x.detach().requires_grad_()
        return Ready(
            rows=partial(rows_of, weigh, pfa, x, grad),
            forward=partial(weigh, leaf),
            inputs=[leaf, *pfa.parameters()],
            about={"note": column.note},
            counts=column.counts,
        )

    lines, found = [], {}
    for column in map(PFA_COLUMNS.get, columns):
        try:
            found[column.name] = column.ready(partial(prepare, column), ready)
        except GapError as gap:
            lines.append({**about, "column": column.name, "row": None, "gap": str(gap)})
    floors = {row: v * x.nbytes for row, v in zip(ROWS, FLOOR[case.fusion], strict=True)}
    return lines + harness.figures(about, found, OURS, device, copy=x, floors=floors, **how)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and adds to the results."""
    from bench import report

    parser = harness.parser(__doc__, PFA_COLUMNS, budget=1.0)
    words = "seconds that a column may take until it can be timed, its check among them"
    parser.add_argument("--ready", type=float, default=20, help=words)
    parser.add_argument(
        "--warm",
        action="store_true",
        help="call the column before each call, not overwrite the caches",
    )
    chosen = harness.parse(parser, arguments)
    budget = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
    how = {**budget, "again": chosen.warm}
    some = cases.select(cases.PFA_SMOKE if chosen.smoke else cases.PFA[chosen.device], chosen.case)
    measured = (
        measure_case(case, dtype, chosen.columns, chosen.device, chosen.ready, **how)
        for case, dtype in itertools.product(some, chosen.dtype)
    )
    lines = harness.record(measured, report.case_table, chosen)
    print(f"\n{report.pfa_overview([line | {'stale': False} for line in lines])}\n")


if __name__ == "__main__":
    main()
