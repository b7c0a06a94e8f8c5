"""The bench: what it counts is right, a slow op is reported slower, a wrong one is refused, smokes write
nothing.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import (
    cases,
    harness,
    model,
    networks,
    neuron,
    peers,
    pfa,
    report,
    seams,
    sources,
    stream,
    tables,
    vae,
)
from bench import data as bench_data

ROOT = Path(__file__).resolve().parent.parent
CASE = cases.Case("test", 4, (2, 8, 16, 16))


@pytest.fixture(autouse=True)
def _as_users_run_it():
    torch.use_deterministic_algorithms(False)  # it fills every new tensor, which is traffic


def script(name: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "bench" / name, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture
def here(monkeypatch):
    """What `python bench/<script>` prints, without a new interpreter: of those that gpu.py --smoke starts."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(harness, "keep_memory", lambda: None)  # it stays with the process

    def run(name: str, *words: str) -> str:
        out, scripts = io.StringIO(), {"neuron": neuron, "seams": seams, "pfa": pfa}
        scripts |= {"model": model, "vae": vae, "stream": stream}
        with contextlib.redirect_stdout(out):
            scripts[name.removesuffix(".py")].main(list(words))
        return out.getvalue()

    monkeypatch.chdir(ROOT)
    gc.freeze()  # every figure of memory begins with a collection, which need not pass all that is imported
    yield run
    gc.unfreeze()
    torch.set_num_threads(threads)


def test_smoke_of_data(fused, capsys, monkeypatch):
    """Decoders and ways to frame, a few events of each."""
    monkeypatch.setattr(harness, "keep_memory", lambda: None)  # it stays with the process
    threads = torch.get_num_threads()
    bench_data.main(["--smoke", "--device", "cpu", "--threads", "1"])
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    rows = re.findall(
        r"^\| (AEDAT 3.1|AEDAT 2.0|ATIS|text) +\| +([\d.]+) \| +([\d.]+) \|$", out, re.MULTILINE
    )
    assert len(rows) == 4 and all(float(fast) > 0 and float(slow) >= 0 for _, fast, slow in rows), out
    assert len(re.findall(r"^\| by (?:number|time) +\| .* +\| +[\d,]+ \|$", out, re.MULTILINE)) == 9, out


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (
            ["neuron.py", "--columns", "attsnn", "eager", "eager, published", "SpikingJelly", "Norse"],
            r"\*\*smoke .*\*\*\n\n\| ms .*\n\|[-: |]*\n\| attsnn +\| +[\d.]+ \|",
        ),
        (["neuron.py", "--growth", "--columns", "attsnn", "eager"], r"attsnn \| +eager \|\n.*\n\| 1 x 8192"),
        (["neuron.py", "--cold", "--columns", "attsnn"], r"\| attsnn +\| +[\d.]+ \|"),
        (
            ["seams.py", "--columns", "attsnn", "composed", "composed, published", "SpikingJelly"],
            r"\*\*B1 .*\*\*\n\n\| ms .*\| training forward .*\n.*\n\| attsnn +\|(.*\n)+\*\*M1 TCSA .*\*\*\n",
        ),
        (
            ["pfa.py", "--case", "P1", "--columns", "attsnn", "published", "composed", "composed by step"],
            r"\*\*P1 R3 .* nhwc, fp32, multiply; .*\*\*\n\n\| ms .*\n.*\n\| attsnn +\|(.*\n)+"
            r"\| forward / forward \+ backward +\| .*\n.*\n"
            r"\| P1 R3 .*\| +[\d.]+ / [\d.]+ \| +[\d.]+x / [\d.]+x \| +[\d.]+x / [\d.]+x \|",
        ),
        (
            ["model.py", "--case", "1x", "--threads", "1", "--columns", "attsnn", "composed"],
            r"\*\*N1 MS-ResNet-18 CSA 1x4x3x32x32.*\*\*\n\n\| inference, ms .*\n.*\n"
            r"\| convolutions +\|(.*\n)+"
            r"\| training step, ms .* batch in 16 GiB .*\n.*\n.*\n\| attsnn +\| +[\d.]+ \|(.*\n)+"
            r"The convolutions alone take [\d.]+ ms of inference .* than [\d.]+x as fast as composed",
        ),
        (
            ["vae.py"],
            r"\*\*smoke .*, fp32, fsvae neuron; .*\*\*\n\n\| ms +\| attsnn \| / ours \| .* published \| .*\n"
            r".*\n\| step +\| +[\d.]+ \|(.*\n)+\| generation +\|(.*\n)+\| decode +\|(.*\n)+Calls of each col",
        ),
        (
            ["stream.py", "--threads", "1"],
            r"\*\*smoke, MA-SNN, 8x8, .*\*\*\n\n\| +\| attsnn, ms \| attsnn, peak MiB \| whole window, .*\n"
            r".*\n\| T = 3 \| +[\d.]+ \| +[\d.]+ \|.*\n\| T = 9 \|.*x \(.*\n\nThe state takes \d+ KiB",
        ),
        (
            ["gpu.py"],  # as a process, which starts others
            r"\| pfa +\|    ok \|.*\n\| bench +\|    ok \|.*\n"
            r"\| seams +\|    ok \|.*\n\| models +\|    ok \|.*\n\n"
            r"\| above 0 MB +\| cases .*\n.*\n\| fp32, leaky, forward +\| +3 \|",
        ),
    ],
    ids=["cases", "growth", "cold", "seams", "pfa", "models", "vae", "stream", "gpu"],
)
def test_smoke_leaves_the_results_alone(fused, here, words, table):
    before = {path: path.stat().st_mtime_ns for path in harness.RESULTS.glob("*")}
    name, *words = words
    if name == "gpu.py":
        done = script(name, "--smoke")
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        out = here(name, "--smoke", *words, "--device", "cpu")
        assert "results:" not in out
    assert re.search(table, out), out
    assert before == {path: path.stat().st_mtime_ns for path in harness.RESULTS.glob("*")}


def test_results_go_where_they_are_told(fused, here, tmp_path):
    words = ["--smoke", "--device", "cpu", "--case", "33", "--columns", "attsnn", "snnTorch"]
    out = here("neuron.py", *words, "--out", str(tmp_path))
    (path,) = tmp_path.glob("*.jsonl")
    assert f"results: {path}" in out
    lines = harness.read(path)
    assert {line["row"] for line in lines if line["column"] == "attsnn"} == {"forward", "step"}
    for line in lines:
        assert line["csrc"] == sources.csrc_hash() and line["device"] and line["threads"] == 2
        assert line["source"] == sources.source_hash("neuron") and line["dirty"] in (True, False)
        assert line["gap"] or line["seconds"][0] <= line["seconds"][1] <= line["seconds"][2]


def test_unknown_case_and_no_gpu():
    done = script("neuron.py", "--device", "cpu", "--case", "L9")
    assert done.returncode == 1 and "no such case; there are" in done.stderr
    if not torch.cuda.is_available():
        assert "torch finds no CUDA GPU here" in script("gpu.py").stderr


def test_who_ends_a_bench_has_what_was_measured(tmp_path, capsys):
    def measured():
        yield [{"case": "first"}]
        yield [{"case": "second"}]
        raise KeyboardInterrupt

    chosen = argparse.Namespace(smoke=False, out=tmp_path, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        harness.record(measured(), lambda lines: f"table of {lines[0]['case']}", chosen)
    (path,) = tmp_path.iterdir()
    assert [line["case"] for line in harness.read(path)] == ["first", "second"]
    assert capsys.readouterr().out.splitlines() == ["table of first", "table of second"]


def test_a_slow_op_is_slower():
    def slow() -> None:
        end = time.perf_counter() + 2e-3
        while time.perf_counter() < end:
            pass

    times = harness.measure({"slow": slow, "quick": lambda: None}, budget=0.2)
    assert 1.9e-3 < times["slow"].median < 10e-3
    assert all(s > 10 * q for s, q in zip(times["slow"].runs, times["quick"].runs, strict=True))
    assert len(times["slow"].runs) == harness.RUNS


def test_slow_functions_are_called_ten_times_a_run_but_for_the_cap():
    def calls(**how) -> int:
        functions = {"slow": partial(time.sleep, 2e-3)}
        return harness.measure(functions, budget=0.0, flush=False, **how)["slow"].calls

    assert calls() == 10 * harness.RUNS
    assert calls(cap=0.0) == harness.LEAST * harness.RUNS
    assert calls(calls=(2, 2)) == 2 * harness.RUNS


@pytest.mark.parametrize("how", ["clock", "profiler"])
def test_caches_are_overwritten_before_every_call_and_rounds_differ(monkeypatch, how):
    seen, rounds = [], 4 * harness.RUNS

    class Junk:
        def fill_(self, value: int) -> None:
            seen.append("flush")
            time.sleep(3e-3)

    monkeypatch.setattr(harness, "junk_of", lambda device: Junk())
    functions = {name: partial(seen.append, name) for name in "abcd"}
    if how == "clock":
        times = harness.measure(functions, budget=0.0, calls=(4, 4))
        assert all(timing.median < 3e-3 for timing in times.values())  # the flush is not in it
    else:
        model.measure_outside(functions, rounds)
        assert seen[:4] == list("abcd")  # the warm-up
        assert len(seen) == 4 + 2 * 4 * rounds
    timed = seen[-2 * 4 * rounds :]
    assert timed[::2] == ["flush"] * 4 * rounds
    orders = ["".join(timed[at : at + 8 : 2]) for at in range(1, len(timed), 8)]
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > rounds / 2


def test_a_call_again_follows_one_of_its_own(monkeypatch):
    monkeypatch.setattr(harness, "junk_of", lambda device: torch.empty(0))
    seen: list[str] = []
    functions = {name: partial(seen.append, name) for name in "abcd"}
    times = harness.measure(functions, budget=0.0, calls=(4, 4), again=True)
    assert seen[::2] == seen[1::2] and len(seen) > 2 * 4 * 4 * harness.RUNS
    assert [timing.calls for timing in times.values()] == [4 * harness.RUNS] * 4


def test_growth_measures_the_columns_of_a_size_in_turns(fused, monkeypatch):
    right, seen = harness.measure, []

    def measure(functions, *args, **how):
        seen.append([*functions])
        return right(functions, *args, **how)

    monkeypatch.setattr(harness, "measure", measure)
    columns = ["attsnn", "eager", "SpikingJelly native"]  # the last is no column of a CPU
    lines = neuron.growth(columns, "cpu", "fp32", smoke=True)
    assert seen == [["attsnn", "eager"]] * 2
    assert [line["calls"] for line in lines if not line["gap"]] == [2 * harness.RUNS] * 4


@pytest.mark.parametrize("wrong", ["spikes", "gradient"])
def test_a_wrong_op_is_refused(fused, wrong):
    right = peers.COLUMNS["attsnn"].make("leaky", None)

    def layer(x):
        out = right(x)
        return 1 - out if wrong == "spikes" else out * 1.0 + 0.05 * (x - x.detach())

    x, grad = CASE.normal(torch.float32, "cpu") + 1, CASE.normal(torch.float32, "cpu", 1)
    exact = peers.Exact.of("leaky", x, grad)
    assert peers.check(right, exact) == 0
    with pytest.raises(peers.GapError, match="refused"):
        peers.check(layer, exact)


@pytest.mark.parametrize("wrong", ["inference", "spikes", "gradient"])
def test_a_wrong_seam_is_refused(fused, monkeypatch, wrong):
    """Spikes turned round in training or in inference alone, or a gradient that is not there."""

    def make(layer, z):
        right = peers._composed_seam(layer, z)

        def seam(z, shortcut=None):
            out, x = right(z, shortcut)
            if wrong == "gradient" and layer.training:
                other = layer.norm.weight.detach().view(-1, 1, 1) * z
                out = out + 0.1 * (other - other.detach())
            elif wrong == "spikes" or (wrong == "inference" and not layer.training):
                out = 1 - out
            return out, x

        return seam

    bad = peers.Column("composed", make, serves=("B1", "G1", "G2"))
    monkeypatch.setitem(seams.SEAM_COLUMNS, "composed", bad)
    case = cases.SeamCase("B1", 4, (2, 8, 6, 6))
    lines = seams.measure_case(case, "fp32", ["attsnn", "composed"], "cpu", 20, **harness.SMOKE)
    found = {line["column"]: line["gap"] for line in lines}
    assert found["attsnn"] is None and found["composed"].startswith("refused: ")
    assert ("gradient" in found["composed"]) == (wrong == "gradient")


@pytest.mark.parametrize("name", ["attsnn", "composed, published", "composed"])
@pytest.mark.parametrize("group", ["B1", "G1", "G2"])
def test_seam_columns_are_right(fused, name, group):
    """Ours and the compositions pass the check that stands before their figures, without a flipped spike."""
    column = peers.SEAM_COLUMNS[name]
    (case,) = (case for case in cases.SEAM_SMOKE if case.group == group)
    tensors = seams.Tensors.of(case, torch.float32, "cpu")
    layer = seams.layer_of(case, "cpu")
    seam = column.make(layer, tensors.inputs[0])
    assert seams.check(seam, layer, seams.Exact.of(layer, tensors)) == 0


def test_seams_move_what_their_passes_read_and_write(fused):
    """An element-step in float32, small tensors aside: csrc/README.md's passes, the floor forward."""
    passes = {"B1": (8, 12, 36), "G1": (16, 16, 44)}
    for group, wanted in passes.items():
        case = cases.SeamCase(group, 20, (1, 64, 32, 32))
        tensors, layer = seams.Tensors.of(case, torch.float32, "cpu"), seams.layer_of(case, "cpu")
        seam = peers.SEAM_COLUMNS["attsnn"].make(layer, tensors.inputs[0])
        rows = seams.rows_of(seam, layer, tensors)
        moved = [harness.moved_bytes(rows[row]) / case.neurons for row in seams.ROWS]
        for found, passed in zip(moved, wanted, strict=True):
            assert passed <= found < 1.06 * passed
        assert list(seams.floors_of(case, tensors.inputs[0]).values())[:2] == [
            size * case.neurons for size in wanted[:2]
        ]


def test_the_picture_of_a_seam_counts_right(fused):
    """docs/seam.png's bytes are those that the operators of G1 move; PyTorch's norm reads z twice in one."""
    case = cases.SeamCase("G1", 20, (1, 64, 32, 32))
    tensors = seams.Tensors.of(case, torch.float32, "cpu")
    for name, passes, inside in (("composed", report.PLAIN, 4), ("attsnn", report.FUSED, 0)):
        layer = seams.layer_of(case, "cpu")
        rows = seams.rows_of(peers.SEAM_COLUMNS[name].make(layer, tensors.inputs[0]), layer, tensors)
        moved = [harness.moved_bytes(rows[row]) / case.neurons + inside for row in seams.ROWS[1:]]
        forward, backward = (sum(read + written for _, read, written in some) for some in passes)
        assert abs(moved[0] / forward - 1) < 0.06
        assert abs(moved[1] / (forward + backward) - 1) < 0.06


def test_the_convolutions_are_those_of_the_network(fused):
    """Multiplications of MS-ResNet-18 at 224 x 224: stem, 3x3, shortcuts, read-out; with time what is static
    once. Gradients where the network has them: of all weights, and of every input but the image.
    """
    stem, deep, shortcuts, last = 118.01e6, 1.6763e9, 32.11e6, 0.512e6
    for steps in (1, 2):
        case = cases.ModelCase("N1", steps, (1, 3, 224, 224))
        net = networks.Network.of(networks.MODEL_COLUMNS["attsnn"], case, torch.float32, "cpu")
        found = model.Convolutions.of(net.training, partial(net.train, case.images(torch.float32, "cpu")))
        first = 64 * 64 * 56 * 56  # of the first block's shortcut the input is alike at all steps
        wanted = stem + first + steps * (deep + shortcuts - first) + last
        assert found.multiplications() == pytest.approx(wanted, rel=1e-3)
    assert len(found.calls) == 1 + 16 + 4 + 1
    found.step([torch.ones_like(out) for out in found.forward()])
    assert all(layer.weight.grad is not None for layer, _ in found.calls)
    assert [x.grad is not None for _, x in found.calls] == [False] + [True] * 21


@pytest.mark.parametrize("wrong", ["neuron", "gates", "gradient"])
def test_a_wrong_network_is_refused(fused, wrong):
    def make(name, net, x):
        networks._composed(name, net, x)
        layer = net.stages[1][0].second
        if wrong == "neuron":
            layer.neuron = peers.PRESETS["leaky"]("reference")
            layer.forward = networks._forward(layer, peers._composed_seam(layer, x))
        elif wrong == "gates":
            layer.attention[1] = torch.nn.Identity()
            del layer.attention[1]
            layer.forward = networks._forward(layer, peers._composed_seam(layer, x))
        else:
            right = layer.forward
            layer.forward = lambda x, shortcut: right(x.detach(), shortcut)

    case = cases.MODEL_SMOKE[0]
    right = model.Right.of(case, None, case.images(torch.float32, "cpu"))
    for name in ("attsnn", "composed", "composed, published"):
        model.check(networks.MODEL_COLUMNS[name], case, right)
    with pytest.raises(peers.GapError, match="gradient" if wrong == "gradient" else "logits"):
        model.check(networks.NetworkColumn("wrong", make), case, right)


def test_the_largest_batch():
    for most in (0, 1, 31, 1000):
        for guess in (0, 1, 7, 5000):
            found = model.largest(lambda n, most=most: n <= most, guess)
            assert found <= most and most - found <= max(1, most // 32) and (most == 0 or found > 0)


def test_tables_of_networks():
    """What is outside of the convolutions: by the clock 3 and 1 of 5 and 3 seconds beside 2."""
    about = {"bench": "model", "case": "N1", "dtype": "fp32", "neuron": "n", "device": "d", "threads": 2}
    about |= {"torch": "2", "commit": "c", "images": 6, "memory_gib": 16.0, "stale": False, "note": ""}
    about |= {"calls": 30, "gap": None}
    lines = [
        about
        | {"column": name, "row": row, "seconds": [t, t, t], "runs": [t] * 3, "ratio": [t / 3] * 3}
        | {"peak_bytes": 2**20 * t, "kept_bytes": 0, "off": 0.0, "largest_batch": 8, "multiplications": 1e9}
        for name, t in (("convolutions", 2.0), ("attsnn", 3.0), ("composed", 5.0))
        for row in model.ROWS
    ]
    gap = about | {"column": "SpikingJelly", "row": None, "gap": "not installed"}
    page = tables.model_table([gap, *lines])
    assert page.count("|                     3000 | 3.00x (3.00-3.00) |") == 2
    assert page.count("outside, ms |") == page.count("outside by the clock, ms |") == 2
    assert "SpikingJelly: not installed." in page
    assert "Not measured: composed, published; torch.compile." in page
    assert "Calls of each column: 30 of forward, 30 of step." in page
    assert "2000 ms of a step (3 GFLOP/s), where nothing can be more than 2.50x as fast as composed" in page
    assert re.search(
        r"\| N1, fp32 +\| +3000 \| +2 \| +2000 \| +- \| +3.00x \| +60 % \| +1.67x \| +not measured \|"
        r" +not installed \| +not measured \|",
        tables.model_overview([gap, *lines]),
    )
    assert tables.outside(lines[4], lines[2]) == ("-", "-")  # the profiler was not asked
    assert tables.by_the_clock(lines[4], lines[0], lines[0]) == ("3000", "-")  # ours in the noise
    ours, other = (
        line | {"outside": own} for line, own in ((lines[2], [1.0, 2.0, 1.0]), (lines[4], [4.0] * 3))
    )
    assert tables.outside(other, ours) == ("4000", "4.00x (3.00-4.00)")
    assert tables.outside(ours, ours) == ("1000", "1")
    page = tables.model_table([lines[0], ours, other])
    assert re.search(r"\| +4000 \| 4.00x \(3.00-4.00\) \| +3000 \| 3.00x \(3.00-3.00\) \|", page)
    assert "30 of forward, 3 under the profiler." in page


def test_networks_as_shipped_are_todays_where_there_are_any():
    """README's table leaves out stale figures of one device as soon as there are fresh ones of another."""
    about = {"bench": "shipped", "case": "S1", "dtype": "fp32", "neuron": "n", "threads": 2, "torch": "2"}
    about |= {"commit": "c", "gap": None, "peak_bytes": 1, "seconds": [3.0] * 3, "ratio": [2.0] * 3}
    lines = [
        about | {"column": name, "row": row, "device": device, "stale": stale}
        for device, stale in (("old", True), ("new", False))
        for name in (tables.OURS, tables.AS_SHIPPED)
        for row in model.ROWS
    ]
    page = tables.shipped_overview(lines)
    assert page.count("S1, fp32") == 1 and "new, 2 threads" in page and "stale" not in page
    page = tables.shipped_overview([line for line in lines if line["stale"]])
    assert "old, 2 threads" in page and "S1, fp32 (stale)" in page and "2.00x" in page


def test_what_is_outside_of_convolutions():
    """By the profiler: next to nothing of a convolution, forward and back, and all of what is none. What a
    convolution calls is in its time and not counted again: less than what is none would be left.
    """
    conv, x = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(16, 64, 32, 32, requires_grad=True)
    grad = torch.randn(16, 64, 32, 32)
    seconds = {}

    def timed(name, call):
        begin = time.perf_counter()
        call()
        seconds.setdefault(name, []).append(time.perf_counter() - begin)

    functions = {
        "convolution": partial(timed, "convolution", lambda: conv(x).backward(grad)),
        "other": partial(timed, "other", lambda: x.erfinv().sum().backward()),
        "both": lambda: (conv(x).backward(grad), time.sleep(5e-3)),
    }
    found = model.measure_outside(functions, 3)
    assert 0 <= min(found["convolution"]) < 0.3 * min(seconds["convolution"])
    assert all(a >= b for a, b in zip(found["other"], seconds["other"][-3:], strict=True))
    assert min(found["both"]) >= 5e-3


def test_a_slow_baseline_is_named():
    """An eager loop below 0.7 of a copy's rate, in the bytes that it moves, says so under its table."""
    line = {"column": "eager", "row": "step", "case": "C0 1x1", "floor_bytes": 100, "share_of_copy": 0.2}
    (fair,) = report._baseline([line | {"moved_bytes": 400}])
    (slow,) = report._baseline([line | {"moved_bytes": 300}])
    assert "at 80 %" in fair and "wrong" not in fair
    assert "at 60 %" in slow and "the baseline is wrong" in slow


def test_a_missing_peer_is_a_named_gap():
    column = peers.Column("nobody", lambda *_: None, "no_such_package")
    with pytest.raises(peers.GapError, match="no_such_package is not installed"):
        column.layer("leaky", torch.zeros(4, 3))
    with pytest.raises(peers.GapError, match="has no ms_resnet neuron"):
        peers.COLUMNS["SpikingJelly"].layer("ms_resnet", torch.zeros(4, 3))


def test_a_column_that_is_not_ready_is_a_named_gap(monkeypatch):
    monkeypatch.setattr(peers, "READY_SECONDS", 0.1)
    column = peers.Column("sleeper", lambda *_: time.sleep(5))
    with pytest.raises(peers.GapError, match=r"not ready within 0\.1 s"):
        column.layer("leaky", torch.zeros(4, 3))


def test_one_that_is_interrupted_leaves_gradients_on():
    """The alarm may ring within torch.no_grad(), before it is ready to put back what it found."""

    def prepare():
        torch.set_grad_enabled(False)
        time.sleep(5)

    with pytest.raises(peers.GapError, match=r"not ready within 0\.01 s"):
        peers.Column("sleeper", prepare).ready(prepare, 0.01)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "step"), [("ms_resnet", 16.5), ("leaky", 20)])
def test_moved_bytes_are_the_floor(fused, name, step):
    """An element-step of ours in float32, kernels.md 4.1: 8 bytes forward; 16.5 from two bits, 20 from x."""
    x, grad = CASE.normal(torch.float32, "cpu"), CASE.normal(torch.float32, "cpu", 1)
    rows = neuron.rows_of(peers.COLUMNS["attsnn"].make(name, x), x, grad)
    moved = {row: harness.moved_bytes(function) for row, function in rows.items()}
    assert moved == {"forward": 8 * CASE.elements, "step": step * CASE.elements}
    for row in ("forward", "step"):
        assert neuron.FLOOR[name, row](4) * CASE.elements == moved[row]


def test_moved_bytes_of_a_known_program():
    x = torch.randn(100)

    def program() -> None:
        y = x[None].expand(7, 100) + 1  # reads 400 bytes once, writes 2800
        y.t().mul_(2)  # a view, then 2800 read and written

    assert harness.moved_bytes(program) == 400 + 2800 + 2 * 2800
    at = torch.tensor([3, 5])  # a gather reads what it picks, zeros like x read nothing
    assert harness.moved_bytes(lambda: x[at]) == 8 + 16 + 8
    assert harness.moved_bytes(lambda: torch.zeros_like(x)) == 400


def test_kept_and_peak_bytes():
    x = torch.randn(1000, requires_grad=True)
    assert harness.kept_bytes(lambda: (x * 2).exp()) == 4000
    assert harness.kept_bytes(lambda: x * x, but=[x]) == 0

    def program() -> None:
        y = x.detach() + 1
        z = y + 1
        del y
        z + 1

    program()
    assert 8000 <= harness.peak_bytes(program, "cpu") < 9000


@pytest.mark.parametrize("order", ["nchw", "nhwc", "t_last"])
def test_cases_lie_as_they_say(order):
    x = cases.Case("test", 4, (2, 8, 3, 5), order).normal(torch.float32, "cpu")
    assert x.shape == (4, 2, 8, 3, 5)
    fastest = {"nchw": 4, "nhwc": 2, "t_last": 0}[order]
    assert x.stride(fastest) == 1


def test_pages_say_what_is_stale(fused, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "OVERVIEW", ("smoke",))
    lines = neuron.measure_case(
        cases.SMOKE[1], "fp32", "leaky", ["attsnn", "eager", "Norse"], "cpu", **harness.SMOKE
    )
    harness.append(lines, tmp_path, "cpu")
    text = "before\n<!-- bench: overview -->\nold\n<!-- /bench -->\nafter\n"
    page = report.render(text, report.latest())
    assert page.startswith("before\n") and page.endswith("<!-- /bench -->\nafter\n") and "old" not in page
    assert "smoke 70x33, fp32, leaky" in page and report.STALE not in page
    assert report.render(page, report.latest()) == page
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text("".join(json.dumps({**line, "source": "0"}) + "\n" for line in lines))
    assert "leaky (stale)" in report.render(text, report.latest())


def test_what_makes_figures_stale(tmp_path):
    """A change of the kernels, or of the Python around them; not of their pages or of what is compiled."""
    python = ("ops/seam.py", "layers.py", "neurons.py", "attention.py", "models/ms_resnet.py")
    for name in ("csrc/core/lif.h", "csrc/README.md", *(f"attsnn/{n}" for n in (*python, "engine/loop.py"))):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")

    def changed_by(name: str) -> set[str]:
        before = {bench: sources.source_hash(bench, tmp_path) for bench in sources.SOURCES}
        (tmp_path / name).write_text(f"x = {name!r}")
        return {bench for bench in before if sources.source_hash(bench, tmp_path) != before[bench]}

    assert changed_by("csrc/core/lif.h") == changed_by("attsnn/ops/seam.py") == {*sources.SOURCES}
    for name in python[1:]:
        assert changed_by(f"attsnn/{name}") == {"seams", "model"}
    for name in ("csrc/README.md", "attsnn/engine/loop.py", "attsnn/ops/seam.pyc"):
        assert changed_by(name) == set()
    for pattern in {pattern for patterns in sources.SOURCES.values() for pattern in patterns}:
        assert any(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (("x: int", "x: float"), False),
        ((" -> int", ""), False),
        (("y: int = 2", "y = 2"), False),
        (("Doubles.", "Twice as much."), False),
        (("# why", "# because"), False),
        (("import Any", "import Any, cast"), False),
        (("return x * y", "return x + y"), True),
        (("        z = 'a", "    z = 'a"), True),
        (("y: int = 2", "y: int = 3"), True),
        (("'a  b'", "'a b'"), True),
    ],
)
def test_what_of_python_makes_figures_stale(change, counts):
    """What runs alone: comments, docstrings and types do not."""
    code = """\
from typing import Any
def f(x: int) -> int:  # why
    \"\"\"Doubles.\"\"\"
    y: int = 2
    if x:
        z = 1
        z = 'a  b'
    return x * y
"""
    assert change[0] in code
    assert (sources.runs(code) != sources.runs(code.replace(*change))) == counts


LINE = {"bench": "neuron", "device": "d", "case": "C0 1x1", "dtype": "fp32", "neuron": "leaky", "gap": None}
LINE |= {"column": "attsnn", "threads": 2, "isa": "AVX2", "commit": "c", "torch": "2", "note": ""}
LINE |= {"seconds": [1.0] * 3, "calls": 30, "ratio": None, "copy_seconds": 1.0, "share_of_copy": 0.5}
LINE |= {"floor_bytes": 1, "moved_bytes": 1, "peak_bytes": 1, "kept_bytes": 1, "mismatches": 0}


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """What counts of neuron lines that differ from LINE like this; of a change alone."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def run(*changes: dict) -> list[dict]:
        (tmp_path / "d.jsonl").unlink(missing_ok=True)
        now = LINE | {"source": sources.source_hash("neuron")}
        harness.append([now | {"row": r} | c for c in changes for r in ("forward", "step")], tmp_path, "cpu")
        return report.latest()

    monkeypatch.setattr(harness, "device_name", lambda device: "d")
    return run


def test_settings_do_not_replace_each_other(shown):
    """Threads and instruction set are part of what is measured; only what is stale yields to others."""
    found = shown({"commit": "old"}, {"threads": 1}, {"isa": "AVX512"}, {"commit": "new", "dirty": True})
    step = [(x["threads"], x["isa"], x["commit"]) for x in found if x["row"] == "step"]
    assert sorted(step) == [(1, "AVX2", "c"), (2, "AVX2", "new"), (2, "AVX512", "c")]
    assert not any(line["stale"] for line in found)
    page = report.overview(found)
    for heading in ("1 threads, AVX2", "2 threads, AVX2", "2 threads, AVX512"):
        assert page.count(f"d, {heading}, torch 2, commit ") == 1
        assert report.details(found).count(f"leaky neuron; d, {heading}**") == 1
    assert page.count("commit new with changes:") == page.count("changes") == 1
    assert report.details(found).count("Measured with changes that are in no commit.") == 1

    for old in ({"source": None}, {"source": "another"}, {"source": None, "threads": None, "isa": None}):
        (line,) = (x for x in shown(old) if x["row"] == "step")  # readable, and stale
        assert line["stale"] and "leaky (stale)" in report.overview([*shown(old)])
        assert [x["threads"] for x in shown(old, {"threads": 1})] == [1, 1]


def test_a_tree_with_changes_is_dirty(tmp_path, monkeypatch):
    """Changes of what is measured, not of results and pages, which a bench writes, nor of trainers."""
    if shutil.which("git") is None:
        pytest.skip("no git checkout")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    clean = ("README.md", "bench/results/a.jsonl", "attsnn/engine/a.py", "attsnn/models/a.py")
    for name in ("attsnn/ops/a.py", *clean):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    who = ("-c", "user.name=n", "-c", "user.email=e")
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    for name, dirty in (*((name, False) for name in clean), ("attsnn/ops/a.py", True)):
        (tmp_path / name).write_text("2")
        about = harness.surroundings("neuron", "cpu")
        assert about["commit"] and about["dirty"] is dirty, name


def test_the_instruction_set_asked_for_is_another(monkeypatch):
    monkeypatch.delenv("ATTSNN_ISA", raising=False)
    usual = harness.surroundings("neuron", "cpu")["isa"]
    monkeypatch.setenv("ATTSNN_ISA", "avx2")
    assert harness.surroundings("neuron", "cpu")["isa"] == f"{usual}, ours avx2"


def test_what_was_never_tried_is_not_measured(shown):
    """A dash where a column does not apply; else why it has no figure."""
    eager, compiled, peer = ({"column": name} for name in ("eager", "torch.compile", "SpikingJelly"))
    figure, rectangular = {"ratio": [2.0] * 3}, {"neuron": "ms_resnet"}
    late = {"row": None, "gap": "not ready within 20 s"}
    page = report.overview(
        shown({}, eager | figure, compiled | late, peer, rectangular, compiled | rectangular | figure)
    )
    assert re.search(r"leaky +\|.*\| +2.00x \| +not ready within 20 s \| +not beside ours \|", page)
    assert re.search(r"ms_resnet +\|.*\| +not measured \| +2.00x \| +- \|", page)


@pytest.mark.parametrize("words", ["seams.py --case G1", "model.py --case 1x", "model.py --case 4x"])
def test_torch_compile_is_tried(fused, here, monkeypatch, words):
    """For gates and for whole networks: it has figures where it is ready in time, else a gap that says so."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    in_time, late = r"\n\| torch.compile +\| +[\d.]+ \|", "torch.compile: not ready within 0.001 s."
    for seconds, found in ((240, in_time), (1e-3, late)):
        more = f"--smoke --device cpu --threads 1 --columns torch.compile --ready {seconds}"
        assert re.search(found, here(*words.split(), *more.split()))
    assert model.READY_SECONDS == 240


def test_pictures(fused, tmp_path):
    pytest.importorskip("matplotlib", reason="extra plot")
    lines = neuron.measure_case(cases.SMOKE[1], "fp32", "leaky", ["attsnn", "eager"], "cpu", **harness.SMOKE)
    lines += neuron.growth(["attsnn", "eager"], "cpu", "fp32", smoke=True)
    report.pictures([line | {"stale": False} for line in lines], tmp_path)
    assert {path.name.partition("-")[0] for path in tmp_path.glob("*.png")} == {
        "peers",
        "share",
        "growth",
        "seam.png",
    }


def test_the_pages_are_up_to_date():
    """README and docs/performance.md hold what the results give."""
    done = script("report.py", "--check")
    assert done.returncode == 0, done.stdout


def test_another_commit_beside_this_one(fused):
    """--against HEAD: in a work tree of its own, built there where its kernels are others."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    words = ["--smoke", "--case", "33", "--neuron", "leaky", "--device", "cpu", "--against", "HEAD"]
    command = [sys.executable, ROOT / "bench" / "neuron.py", *words]
    env = {**os.environ, "ATTSNN_CUDA": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "smoke 70x33 fp32 leaky step" in done.stdout and done.stdout.count("x\n") == 2
