"""One spiking neuron layer: ours, PyTorch loops and the peers, forward and training step, in one run.

python bench/neuron.py [--device cpu|cuda] [--dtype fp32 ...] [--case C0 ...] [--smoke]
python bench/neuron.py --against REF     also the kernels of another commit, and the ratio
python bench/neuron.py --growth          time and memory against T and against the number of neurons

Each table is one case, dtype and neuron. Times are medians with their quartiles; "/ ours" is the time over
ours with its spread over three runs; GB/s is the byte floor of the case over the time, the same bytes for
all, and its share of a copy's bandwidth. Results are added to bench/results/<device>.jsonl.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Also where attsnn is built but not installed; --against measures the package of the tree ATTSNN_TREE names.
sys.path[:0] = [os.environ.get("ATTSNN_TREE", ""), str(Path(__file__).resolve().parent.parent)]

import torch
from torch import Tensor

import attsnn  # noqa: F401  (before that path goes)

sys.path.pop(0)

from bench import cases, harness, sources
from bench.cases import Case
from bench.peers import COLUMNS, NEURONS, OURS, READY_SECONDS, Exact, GapError, Layer, check

# What must be read and written at the least, bytes an element-step for values of b bytes: x, s forward; the
# gradients of both and x again backward, or two bits, written and read, where those suffice.
FLOOR = {
    ("leaky", "forward"): lambda b: 2 * b,
    ("leaky", "step"): lambda b: 5 * b,
    ("ms_resnet", "forward"): lambda b: 2 * b,
    ("ms_resnet", "step"): lambda b: 4 * b + 0.5,
}

STEP_SECONDS = 2  # what takes longer is not worth many calls: a gap in the growth tables
GROWTH = {"cap": 6.0, "calls": (10, 50)}  # of harness.measure, at each size
GROWTH_BUDGET = 0.25  # seconds of a column


def rows_of(layer: Layer, x: Tensor, grad: Tensor) -> dict[str, Callable]:
    """What is timed of a layer: inference, and forward + backward with a dense gradient that is there."""
    leaf = x.detach().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def step() -> None:
        leaf.grad = None
        layer(leaf).backward(grad)

    return {"forward": forward, "step": step}


def measure_case(case: Case, dtype: str, neuron: str, columns: list[str], device: str, **how) -> list[dict]:
    """The lines of one case: a line for each column and row, or for each gap. `how`: of harness.measure."""
    x, grad = (case.normal(cases.DTYPES[dtype], device, seed) for seed in (0, 1))
    about = harness.surroundings("neuron", device) | {"case": case.name, "dtype": dtype, "neuron": neuron}
    lines, ready = [], {}
    exact = Exact.of(neuron, x, grad)
    for name in columns:
        column = COLUMNS[name]
        try:
            layer = column.layer(neuron, x)
            mismatches = check(layer, exact, same_gradient=column.same_gradient)
        except GapError as gap:
            lines.append({**about, "column": name, "row": None, "gap": str(gap)})
            continue
        leaf = x.detach().requires_grad_()
        ready[name] = harness.Ready(
            rows=partial(rows_of, layer, x, grad),
            forward=partial(layer, leaf),
            inputs=[leaf],
            about={"mismatches": mismatches, "note": column.note},
            counts=column.counts,
        )
    floors = {row: FLOOR[neuron, row](x.element_size()) * case.elements for row in ("forward", "step")}
    return lines + harness.figures(about, ready, OURS, device, copy=x, floors=floors, **how)


# ---- cold start, growth, another commit


def cold_starts(columns: list[str], device: str) -> list[dict]:
    """Seconds of a fresh process until the first training step of a small layer is done, by column."""
    program = (
        f"import sys; sys.path.insert(0, {str(harness.ROOT)!r})\n"
        "import torch\nfrom bench.peers import COLUMNS\n"
        f"x = torch.randn(4, 4096, device={device!r})\n"
        "COLUMNS[{name!r}].layer('leaky', x)\n"
    )
    torch_alone = harness.first_call_seconds(f"import torch; torch.randn(4, 4096, device={device!r})", 120)
    lines = []
    for name in columns:
        line = harness.surroundings("cold start", device) | {"column": name, "torch_seconds": torch_alone}
        try:
            lines.append(
                {**line, "seconds": harness.first_call_seconds(program.format(name=name), 120), "gap": None}
            )
        except RuntimeError as error:
            lines.append({**line, "seconds": None, "gap": str(error).rpartition("GapError: ")[2]})
    return lines


def growth(columns: list[str], device: str, dtype: str, smoke: bool) -> list[dict]:
    """Time and peak memory of a training step against T, and against the number of neurons."""
    neurons = cases.GROWTH_NEURONS[device]
    sweep = [("T", Case("growth", t, (neurons[0],))) for t in cases.GROWTH_STEPS]
    sweep += [("neurons", Case("growth", 16, (n,))) for n in neurons]
    if smoke:  # the smallest of each
        sweep = [sweep[0], sweep[len(cases.GROWTH_STEPS)]]
    lines = []
    ready: dict[str, float] = {}  # seconds to the first step at the T before, by column
    for against, case in sweep:
        x, grad = (case.normal(cases.DTYPES[dtype], device, seed) for seed in (0, 1))
        about = harness.surroundings("growth", device) | {"against": against, "dtype": dtype}
        about |= {"steps": case.steps, "neurons": case.step[0]}
        layers: dict[str, Layer] = {}
        if against == "neurons":  # as many steps each time
            ready.clear()
        for name in columns:
            try:
                layers[name] = _grown(name, x, grad, ready)
            except GapError as gap:
                lines.append({**about, "column": name, "gap": str(gap)})
        steps = {name: rows_of(layer, x, grad)["step"] for name, layer in layers.items()}
        how = harness.SMOKE if smoke else GROWTH | {"budget": GROWTH_BUDGET * len(steps)}
        for name, timing in harness.measure(steps, device, **how).items() if steps else ():
            found = {"seconds": [timing.low, timing.median, timing.high], "calls": timing.calls}
            found["peak_bytes"] = harness.peak_bytes(rows_of(layers[name], x, grad)["step"], device)
            lines.append({**about, "column": name, "gap": None, **found})
    return lines


def _grown(name: str, x: Tensor, grad: Tensor, ready: dict[str, float]) -> Layer:
    """A column's layer for x. Raises GapError where it is too slow, or took too long to get `ready` with a
    fourth of the steps; keeps the seconds that it took.
    """
    start = time.perf_counter()
    if 4 * ready.get(name, 0) > READY_SECONDS:
        raise GapError(f"not tried: a fourth of the steps took {ready[name]:.0f} s to get ready")
    try:
        layer = COLUMNS[name].layer("leaky", x)
    finally:  # also of what was not ready in time: more steps are then not tried
        ready[name] = time.perf_counter() - start
    start = time.perf_counter()
    rows_of(layer, x, grad)["step"]()
    if (seconds := time.perf_counter() - start) > STEP_SECONDS:
        raise GapError(f"not timed: one step takes {seconds:.0f} s")
    return layer


def against(reference: str, words: list[str]) -> None:
    """Builds another commit beside this one, measures our column in both, and prints the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / "tree", Path(folder) / "out"
        run = partial(subprocess.run, check=True, cwd=harness.ROOT)
        run(["git", "worktree", "add", "--detach", "--quiet", str(tree), reference])
        try:
            _build_in(tree)
            found = []
            for where in (harness.ROOT, tree):
                shutil.rmtree(out, ignore_errors=True)
                command = [sys.executable, __file__, *words, "--columns", OURS, "--out", str(out)]
                run(command, env={**os.environ, "ATTSNN_TREE": str(where)}, stdout=subprocess.DEVNULL)
                found.append([line for path in out.glob("*.jsonl") for line in harness.read(path)])
        finally:
            run(["git", "worktree", "remove", "--force", str(tree)])
    ours, theirs = ({_key(line): line for line in lines if line.get("seconds")} for lines in found)
    print(f"{'case':58} {'now':>10} {reference:>12} {'ratio':>7}")
    for key, line in ours.items():
        if key in theirs:
            now, then = line["seconds"][1], theirs[key]["seconds"][1]
            print(f"{' '.join(key):58} {1e3 * now:8.3f} ms {1e3 * then:9.3f} ms {then / now:6.2f}x")


def _build_in(tree: Path) -> None:
    """The extension of another work tree: built there, or this one's where the kernels are the same."""
    here = harness.ROOT
    if sources.csrc_hash(tree) == sources.csrc_hash(here):
        for library in (here / "attsnn").glob("_C.*"):
            shutil.copy2(library, tree / "attsnn")
    else:
        subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext"], cwd=tree, check=True)


def _key(line: dict) -> tuple[str, ...]:
    return line["case"], line["dtype"], line["neuron"], line["row"]


# ---- the command line


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and adds to the results."""
    from bench import report

    parser = harness.parser(__doc__, COLUMNS, budget=3.0)
    parser.add_argument("--neuron", nargs="+", choices=[*NEURONS], default=[*NEURONS])
    parser.add_argument("--growth", action="store_true", help="against T and the number of neurons instead")
    parser.add_argument(
        "--cold", action="store_true", help="seconds to the first result in a fresh process instead"
    )
    parser.add_argument("--against", metavar="REF", help="another commit, to compare with")
    chosen = harness.parse(parser, arguments)
    if chosen.against:
        words = [w for a in ("device", "threads") for w in (f"--{a}", str(getattr(chosen, a)))]
        for name in ("dtype", "case", "neuron"):
            words += [f"--{name}", *getattr(chosen, name)] if getattr(chosen, name) else []
        return against(chosen.against, words + ["--smoke"] * chosen.smoke)
    if chosen.cold:
        measured, table = [cold_starts(chosen.columns, chosen.device)], report.cold_table
    elif chosen.growth:
        measured = [growth(chosen.columns, chosen.device, chosen.dtype[0], chosen.smoke)]
        table = report.growth_table
    else:
        how = harness.SMOKE if chosen.smoke else {"budget": chosen.budget, "cap": chosen.cap}
        some = cases.select(cases.SMOKE if chosen.smoke else cases.NEURON[chosen.device], chosen.case)
        table = report.case_table
        measured = (
            measure_case(case, dtype, neuron, chosen.columns, chosen.device, **how)
            for case, dtype, neuron in itertools.product(some, chosen.dtype, chosen.neuron)
        )
    harness.record(measured, table, chosen)


if __name__ == "__main__":
    main()
