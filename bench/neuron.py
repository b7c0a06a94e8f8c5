"""One LIF layer on the CPU: the fused op beside the cleaned eager loop and a copy of the input, in one run.

python bench/neuron.py [--threads 2] [--repeats 15]

Prints medians in milliseconds and the ratios: eager / fused for forward + backward, fused / copy for forward.
The eager loop walks `x.unbind(0)`; a loop over `x[t]` would be slower for no reason. The copy allocates its
result, as the op does. Memory once taken from the system is kept, for all alike: else page faults, which come
and go with the order of allocations, are most of what one sees.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # also where attsnn is built but not installed

import torch

from attsnn import neurons

CASES = [(4, 524_288), (16, 262_144), (60, 131_072)]  # (T, neurons), float32, normal input


def keep_memory() -> None:
    """Asks glibc to give no freed memory back to the system; elsewhere nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold, top_pad = -3, -1, -2
        for name, value in ((mmap_threshold, 32 << 20), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20)):
            mallopt(name, value)


def interleaved_medians(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The median time of each function in milliseconds; the functions take turns, so that noise meets all
    alike.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for name in functions:
        functions[name]()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(steps: int, count: int, preset: str, repeats: int) -> dict[str, float]:
    """Medians of copy, fused forward, and fused and eager forward + backward of one layer of that preset."""
    torch.manual_seed(0)
    x, grad = torch.randn(steps, count), torch.randn(steps, count)
    leaf = x.clone().requires_grad_()
    fused, eager = (neurons.PRESETS[preset](backend=b) for b in ("fused", "reference"))

    def step(neuron) -> None:
        leaf.grad = None
        neuron(leaf).backward(grad)

    def forward() -> None:
        with torch.no_grad():
            fused(x)

    quick = interleaved_medians({"copy": x.clone, "forward": forward, "fused": lambda: step(fused)}, repeats)
    return quick | interleaved_medians({"eager": lambda: step(eager)}, max(3, repeats // 3))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--preset", choices=[*neurons.PRESETS], default="ms_resnet")
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.preset}, float32, {arguments.threads} threads, torch {torch.__version__}; milliseconds"
    )
    row = "{:>14} {:>7} {:>8} {:>7} {:>8} {:>8} {:>13}"
    print(row.format("T x neurons", "copy", "forward", "/ copy", "fwd+bwd", "eager", "eager / ours"))
    for steps, count in CASES:
        ms = measure(steps, count, arguments.preset, arguments.repeats)
        shown = [f"{ms[name]:.2f}" for name in ("copy", "forward", "fused", "eager")]
        shown.insert(2, f"{ms['forward'] / ms['copy']:.2f}x")
        print(row.format(f"{steps} x {count}", *shown, f"{ms['eager'] / ms['fused']:.1f}x"))


if __name__ == "__main__":
    main()
