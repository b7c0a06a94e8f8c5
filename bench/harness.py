"""How things are measured: time, bytes kept, bytes moved, peak memory, and the lines of bench/results.

CUDA: events around one call, the second-level cache overwritten before each, the host ahead of the GPU. CPU:
`perf_counter`, a buffer larger than the caches written before each call, freed memory kept by the process.
Functions take turns in an order that is drawn anew for every round, so that noise and heat meet all alike.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import random
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler, which counts memory, announces itself

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bench import sources
from bench.cases import DTYPES
from bench.sources import ROOT

RESULTS = ROOT / "bench" / "results"
RUNS = 3  # repetitions of a whole measurement; the spread of a ratio is over these
CAP = 12.0  # seconds that the least number of calls may take: `make bench` is to stay below five minutes
LEAST = 3  # calls of a run, however slow
SMOKE = {"budget": 0.05, "calls": (2, 2), "flush": False}
HEAD_START = 50e-6, 20e-3  # seconds, at the least and most, that a GPU waits in front of a call
_FLUSH_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # more than the last cache of either


@dataclass(frozen=True)
class Timing:
    """Seconds of one function: the median and the quartiles of all calls, and the median of each run."""

    median: float
    low: float
    high: float
    calls: int
    runs: tuple[float, ...]
    host: float | None = None  # the median of what the host takes to hand a call over to a GPU


def keep_memory() -> None:
    """As a training on a CPU keeps what is freed: page faults come and go with the order of allocations, and
    are most of what one sees otherwise. From this tree, whichever is measured.
    """
    runpy.run_path(str(ROOT / "attsnn" / "engine" / "memory.py"))["keep_memory"]()


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Without Python's garbage collector, whose pauses belong to no function."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def junk_of(device: str) -> Tensor:
    """What is written over the caches before a call."""
    return torch.empty(_FLUSH_BYTES[device], dtype=torch.uint8, device=device)


def turns(names: Iterable[str]) -> Iterator[list[str]]:
    """The names in an order of its own for every round, without end; the same orders in every process."""
    order, shuffle = list(names), random.Random(0)
    while True:
        shuffle.shuffle(order)
        yield list(order)


def measure(
    functions: Mapping[str, Callable[[], object]],
    device: str = "cpu",
    *,
    budget: float = 4.0,
    cap: float = CAP,
    calls: tuple[int, int] = (10, 100),
    flush: bool = True,
    again: bool = False,
    ahead: bool = True,
) -> dict[str, Timing]:
    """Times every function, in turns: warm-up until stable, then RUNS runs.

    Args:
        budget: seconds for all functions and runs together, as far as `calls` allows.
        cap: seconds above which there are fewer calls than the least of `calls`, down to LEAST.
        calls: the least and the most calls of each function in a run.
        flush: overwrite the caches before each call.
        again: instead, call the same function before each call, as in a loop over it.
        ahead: a GPU waits until it has been handed the whole call, so that its own time is measured; else
            as in a program that has nothing else for it, where the host may be what takes the time.
    """
    overwrite = partial((junk_of(device) if flush else torch.empty(0)).fill_, 1)
    host: dict[Callable[[], object], list[float]] = {}

    def clock(function: Callable[[], object]) -> tuple[float, float]:
        before = function if again else overwrite
        if device != "cuda":
            return _cpu_seconds(function, before)
        least, most = HEAD_START
        handed = host.setdefault(function, [])
        start = min(most, max(least, 1.5 * handed[-1])) if ahead and handed else least
        seconds, everything, own = _cuda_seconds(function, before, start)
        handed.append(own)
        return seconds, everything

    warm = {name: _warm_up(function, clock) for name, function in functions.items()}
    round_seconds = (1 + again) * sum(warm.values()) + len(warm) * clock(lambda: None)[1]
    of_budget, of_cap = (int(seconds / RUNS / round_seconds) for seconds in (budget, cap))
    rounds = min(calls[1], max(of_budget, min(calls[0], of_cap), LEAST))
    times: dict[str, list[list[float]]] = {name: [[] for _ in range(RUNS)] for name in functions}
    orders = turns(functions)
    gc.collect()
    with collector_off():
        for run in range(RUNS):
            for order in itertools.islice(orders, rounds):
                for name in order:
                    times[name][run].append(clock(functions[name])[0])
    return {name: _timing(runs, host.get(functions[name])) for name, runs in times.items()}


def _timing(runs: list[list[float]], host: list[float] | None) -> Timing:
    every = [t for run in runs for t in run]
    low, median, high = statistics.quantiles(every, n=4)
    handed = host and statistics.median(host[-len(every) :])
    return Timing(median, low, high, len(every), tuple(statistics.median(run) for run in runs), handed)


def _warm_up(function, clock, most: int = 20, patience: float = 0.5) -> float:
    """Calls until two calls in a row are within a tenth of the best so far; returns the last time."""
    best, calm, start = float("inf"), 0, time.perf_counter()
    for _ in range(most):
        seconds = clock(function)[0]
        calm = calm + 1 if seconds <= 1.1 * best else 0
        best = min(best, seconds)
        if calm >= 2 or time.perf_counter() - start > patience:
            break
    return seconds


def _cpu_seconds(function, before) -> tuple[float, float]:
    """(seconds of the call, seconds of the call with what is called before it)."""
    began = time.perf_counter()
    before()
    start = time.perf_counter()
    function()
    end = time.perf_counter()
    return end - start, end - began


def _cuda_seconds(function, before, head_start: float) -> tuple[float, float, float]:
    """As `_cpu_seconds`, and the seconds until the host has handed the call over."""
    began = time.perf_counter()
    before()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(head_start * 2e9))  # cycles, of which no GPU has more in a second
    first.record()
    start = time.perf_counter()
    function()
    handed = time.perf_counter() - start
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3, time.perf_counter() - began, handed


def kept_bytes(function: Callable[[], object], but: Iterable[Tensor] = ()) -> int:
    """Unique bytes that autograd holds after `function()`, whose result it returns is kept alive meanwhile.

    The storages of `but` do not count: the input and the output exist anyway.
    """
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    for tensor in but:
        held.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(held.values())


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The most memory in use at any time during `function()`, above that before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = torch.profiler.ProfilerActivity.CPU
    with _silent(), torch.profiler.profile(activities=[cpu], profile_memory=True) as trace:
        function()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in trace.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr, also from C++: the profiler warns of memory from before its start."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


_PATTERNS = {f"aten::{how}" for how in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like")}


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write: each tensor argument once, each result once, views
    nothing. For an operator that is one pass over its arguments these are its loads and stores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        read = [t for t in tree_iter((args, kwargs or {})) if isinstance(t, Tensor)]
        written = [t for t in tree_iter(result) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr() for t in read}
        in_place = function._schema.is_mutable
        fresh = [t for t in written if t.untyped_storage().data_ptr() not in storages]
        creates = name.startswith(("aten::empty", "aten::new_empty"))
        if name in _PATTERNS:
            read = []  # its shape alone
        elif name in ("aten::index", "aten::gather"):
            read[0] = result  # of the source, what is picked alone
        elif name.endswith(("_seam_forward", "_seam_backward")):
            from attsnn.ops.seam_shapes import SPACE, rules_of  # not in the trees of every commit measured

            given = {a.name: value for a, value in zip(function._schema.arguments, args, strict=True)}
            if rules_of(given["rules"]).gates & SPACE:
                read.append(given["p"])  # spatial attention is known behind a pass over all maps
        if (fresh or in_place) and not creates:
            self.bytes += sum(map(_extent, read)) + sum(map(_extent, fresh if fresh else read[:1]))
        return result


def _extent(tensor: Tensor) -> int:
    """Bytes that a pass over the tensor touches: an expanded dimension once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride != 0 else min(size, 1)
    return elements * tensor.element_size()


def moved_bytes(function: Callable[[], object]) -> int:
    """Bytes that the operators of `function()` read and write, by `Traffic`."""
    with Traffic() as traffic:
        function()
    return traffic.bytes


def first_call_seconds(program: str, timeout: float) -> float | None:
    """Seconds from the start of a fresh Python until `program` is through; None past the time limit."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "failed without a word")
    return time.perf_counter() - start


# ---- a case


@dataclass(frozen=True)
class Ready:
    """A column that may be timed. `rows()` makes its functions anew, without results of a call before;
    `forward()` returns what autograd keeps things for, those of `inputs` aside; `about` goes to the last row.
    """

    rows: Callable[[], dict[str, Callable[[], object]]]
    forward: Callable[[], object]
    inputs: Iterable[Tensor]
    about: Mapping[str, Any]
    counts: bool = True  # its operators pass the dispatcher, and are passes
    inside: Mapping[str, int] = field(default_factory=dict)  # bytes that an operator moves twice, by row


def figures(
    about: Mapping[str, Any],
    columns: Mapping[str, Ready],
    ours: str,
    device: str,
    *,
    copy: Tensor,
    floors: Mapping[str, int | None],
    **how,
) -> list[dict]:
    """The lines of a case, one for each column and row.

    Args:
        copy: whose copy is timed along.
        floors: by row, the bytes that must be moved at the least; None: of no meaning.
        how: of `measure`.
    """
    lines, counted = [], {name: _counts(column, device) for name, column in columns.items()}
    for row, floor in floors.items() if columns else ():
        functions = {name: column.rows()[row] for name, column in columns.items()}
        times = measure({"copy": copy.clone, **functions}, device, **how)
        copy_rate = 2 * copy.nbytes / times["copy"].median
        for name in columns:
            time = times[name]
            own = times.get(ours)
            ratios = own and sorted(t / o for t, o in zip(time.runs, own.runs, strict=True))
            found = {
                "seconds": [time.low, time.median, time.high],
                "calls": time.calls,
                "runs": list(time.runs),
                "host_seconds": time.host,
                "copy_seconds": times["copy"].median,
                "ratio": ratios,  # of the three runs: least, middle, greatest
                "floor_bytes": floor,
                "share_of_copy": floor and floor / time.median / copy_rate,
            }
            lines.append({**about, "column": name, "row": row, "gap": None, **found, **counted[name][row]})
    return lines


def _counts(column: Ready, device: str) -> dict[str, dict[str, Any]]:
    """Bytes at the peak and moved of every row of a column; kept, and what is known of it, in the last."""
    counted = {}
    for row, function in column.rows().items():
        moved = moved_bytes(function) + column.inside.get(row, 0) if column.counts else None
        fresh = column.rows()[row]
        counted[row] = {"peak_bytes": peak_bytes(fresh, device), "moved_bytes": moved}
    counted[row] |= {"kept_bytes": kept_bytes(column.forward, column.inputs), **column.about}
    return counted


# ---- where and with what


def narrow(dtype: str, device: str) -> tuple[torch.dtype, Callable[[], torch.autocast]]:
    """(The type of a network's weights and inputs, the autocast that it runs in).

    16 bit is autocast of fp32.
    """
    half = dtype in ("bf16", "fp16")
    kind = torch.float32 if half else DTYPES[dtype]
    return kind, partial(torch.autocast, device, DTYPES[dtype] if half else None, enabled=half)


def device_name(device: str) -> str:
    """The model of the GPU, or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def surroundings(bench: str, device: str) -> dict[str, Any]:
    """What must be known to repeat a measurement. `dirty`: what was measured is not all in the commit."""
    commit = _git("rev-parse", "--short", "HEAD")
    code = (
        *sources.SOURCES.get(bench, sources.NETWORK),
        "attsnn/reference",
        "bench",
        "CMakeLists.txt",
        "setup.py",
    )
    about = {
        "bench": bench,
        "commit": commit or None,
        "dirty": bool(commit and _git("status", "--porcelain", "--", *code, ":(exclude)bench/results")),
        "csrc": sources.csrc_hash(),
        "source": sources.source_hash(bench),
        "device": device_name(device),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        about |= {"cuda": torch.version.cuda, "driver": _driver()}
    else:
        asked = os.environ.get("ATTSNN_ISA")  # a narrower one for our kernels alone
        about["isa"] = torch.backends.cpu.get_cpu_capability() + (f", ours {asked}" if asked else "")
    return about


def _git(*words: str) -> str:
    """What git says of this tree; nothing where there is none."""
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT).stdout.strip()


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return None


# ---- the command line


def parser(doc: str, columns: Iterable[str], budget: float, cap: float = CAP) -> argparse.ArgumentParser:
    """What every bench is told on its command line."""
    words = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words.add_argument("--device", choices=["cpu", "cuda"], default=device)
    words.add_argument("--dtype", nargs="+", choices=[*DTYPES], default=["fp32"])
    words.add_argument(
        "--case", nargs="+", default=[], metavar="WORD", help="cases whose name has one of these"
    )
    words.add_argument("--columns", nargs="+", choices=[*columns], default=[*columns])
    words.add_argument("--threads", type=int, default=2, help="of the CPU")
    words.add_argument("--budget", type=float, default=budget, help="seconds a row of a table")
    words.add_argument("--cap", type=float, default=cap, help="seconds that a row's ten calls a run may take")
    words.add_argument("--smoke", action="store_true", help="tiny shapes; nothing is recorded without --out")
    words.add_argument("--out", type=Path, help="the folder of the results (default: bench/results)")
    return words


def parse(words: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The words, and the process made ready to measure."""
    chosen = words.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        words.error("--device cuda: torch finds no GPU here")
    torch.set_num_threads(chosen.threads)
    if not getattr(chosen, "default_memory", False):
        keep_memory()
    return chosen


def record(
    measured: Iterable[list[dict]], table: Callable[[list[dict]], str], chosen: argparse.Namespace
) -> list[dict]:
    """Prints the lines of each case as they come, and adds them to the results, so that who ends a bench has
    what was measured by then; those of a smoke only where --out says so. Returns them all.
    """
    lines, path = [], None
    for new in measured:
        print(table(new), flush=True)
        if not chosen.smoke or chosen.out:
            path = append(new, chosen.out or RESULTS, chosen.device)
        lines += new
    if path:
        print(f"results: {path}")
    return lines


def append(rows: Iterable[Mapping[str, Any]], folder: Path, device: str) -> Path:
    """Adds lines to <folder>/<device>.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'-'.join(device_name(device).split())}.jsonl"
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
