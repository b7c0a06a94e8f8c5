"""How fast recordings are decoded and framed: events a second on one core, samples a second by batches.

python bench/data.py          the events are random, the files lie in memory; nothing is recorded

Decoding: C++ and the NumPy (text: Python) reference. Framing: 128 samples of 100,000 events each, 10 steps,
128 x 128 pixels, in batches of 32, on `--threads` threads: one call a batch, with 8-bit counts and as
float32; PyTorch's loader over single samples, in the process and in workers; and counting on the device
(`scatter_add_`), the copy of the events to it included.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Also where attsnn is built but not installed.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np
import torch
from torch.utils.data import DataLoader

from attsnn.data import Events, Recordings, write_store
from attsnn.data.core.recordings import FrameSample
from attsnn.data.formats import aedat2, aedat3, atis, text
from attsnn.data.synthetic import writers
from bench import harness
from bench.tables import table

STEPS, SIDE, EVENTS, SAMPLES, BATCH = 10, 128, 100_000, 128, 32
FORMATS = {  # a writer, a decoder, and events of a file
    "AEDAT 3.1": (writers.write_aedat3, aedat3.decode, 2_000_000),
    "AEDAT 2.0": (writers.write_aedat2, aedat2.decode, 2_000_000),
    "ATIS": (writers.write_atis, atis.decode, 2_000_000),
    "text": (writers.write_text, text.decode, 500_000),
}


def recording(number: int, rng: np.random.Generator) -> Events:
    t = np.sort(rng.integers(0, 1_000_000, number))
    x, y = rng.integers(0, SIDE, (2, number)).astype(np.int16)
    return Events(t, x, y, rng.integers(0, 2, number).astype(np.uint8))


def decoding(scale: float, budget: float, folder: Path) -> list[tuple[str, ...]]:
    """Millions of events a second of each format."""
    rows, rng = [], np.random.default_rng(0)
    for name, (write, decode, number) in FORMATS.items():
        number = int(number * scale)
        write(folder / "file", recording(number, rng))
        data = np.fromfile(folder / "file", np.uint8)
        functions = {b: lambda b=b, d=decode, x=data: d(x, backend=b) for b in ("fused", "reference")}
        times = harness.measure(functions, budget=budget, flush=False)
        rows.append((name, *(f"{number / times[b].median / 1e6:.1f}" for b in functions)))
    return rows


class Alone(torch.utils.data.Dataset):
    """Single samples, as data sets without `__getitems__` have them."""

    def __init__(self, data: Recordings) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> FrameSample:
        return self.data[index]


def on_device(data: Recordings, device: str) -> Callable[[], object]:
    """Frames by number, counted where they are used; int32, since atomic counts of 8 bits are not there."""
    columns = [
        np.asarray(column) for column in (data.store.columns.x, data.store.columns.y, data.store.columns.p)
    ]
    step = (
        torch.arange(EVENTS, device=device).div_(EVENTS // STEPS, rounding_mode="floor").clamp_(max=STEPS - 1)
    )
    ones = torch.ones((), dtype=torch.int32, device=device).expand(BATCH * EVENTS)

    def batches() -> None:
        for first in range(0, len(data), BATCH):
            part = slice(first * EVENTS, (first + BATCH) * EVENTS)
            x, y, p = (torch.from_numpy(column[part].copy()).to(device).long() for column in columns)
            sample = torch.arange(BATCH, device=device).repeat_interleave(EVENTS)
            cell = ((sample * STEPS + step.repeat(BATCH)) * 2 + p) * SIDE * SIDE + y * SIDE + x
            frames = torch.zeros(BATCH * STEPS * 2 * SIDE * SIDE, dtype=torch.int32, device=device)
            frames.scatter_add_(0, cell, ones).view(BATCH, STEPS, 2, SIDE, SIDE).float()
        if device == "cuda":
            torch.cuda.synchronize()

    return batches


def framing(samples: int, budget: float, device: str, folder: Path) -> list[tuple[str, ...]]:
    """Samples a second of each way to frame them, by number of events and by time."""
    rng = np.random.default_rng(0)
    clips = ((recording(EVENTS, rng), k % 10, f"clip{k}", "train") for k in range(samples))
    store, classes = folder / "store", [str(k) for k in range(10)]
    write_store(store, clips, classes, (SIDE, SIDE))
    rows = []
    for kind, dt_ms in (("by number", None), ("by time", 100.0)):
        compact, floats = (
            Recordings(store, "train", steps=STEPS, dt_ms=dt_ms, compact=c) for c in (True, False)
        )
        functions = {
            "a batch a call, 8 bits": all_batches(compact),
            "a batch a call, float32": all_batches(floats),
            "loader over samples": through(DataLoader(Alone(floats), BATCH)),
            "the same, 2 workers": through(
                DataLoader(Alone(floats), BATCH, num_workers=2, persistent_workers=True)
            ),
        }
        if dt_ms is None:
            functions[f"counted on the device ({device})"] = on_device(compact, device)
        times = harness.measure(functions, budget=budget, calls=(3, 10), flush=False)
        rows += [(kind, name, f"{samples / times[name].median:,.0f}") for name in functions]
    return rows


def all_batches(data: Recordings) -> Callable[[], object]:
    return lambda: [
        data.__getitems__(range(k, min(k + BATCH, len(data)))) for k in range(0, len(data), BATCH)
    ]


def through(loader: DataLoader) -> Callable[[], object]:
    return lambda: sum(len(labels) for _, labels in loader)


def main(arguments: list[str] | None = None) -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--budget", type=float, default=4.0, help="seconds a row of a table")
    words.add_argument("--smoke", action="store_true", help="a few events")
    chosen = harness.parse(words, arguments)
    threads = chosen.threads
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        scale, budget = (0.01, 0.05) if chosen.smoke else (1.0, chosen.budget)
        print(f"{harness.device_name('cpu')}, {threads} threads of the framing\n")
        header = ("decoding, one core, million events/s", "C++", "reference")
        print(table(header, decoding(scale, budget, Path(folder))) + "\n")
        torch.set_num_threads(threads)
        rows = framing(BATCH if chosen.smoke else SAMPLES, 3 * budget, chosen.device, Path(folder))
        print(table((f"T = {STEPS}, {SIDE} x {SIDE}, {EVENTS:,} events a sample", "how", "samples/s"), rows))


if __name__ == "__main__":
    main()
