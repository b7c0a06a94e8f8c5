"""All that a machine with a CUDA GPU should be asked: build, tests, sanitizers, bench, and a summary.

python bench/gpu.py [--all] [--out DIR]
python bench/gpu.py --smoke         no GPU: the bench alone, tiny, on the CPU

Uses the Python that runs it and installs nothing; needs torch, numpy, pytest, what builds the extension, and
no network. Without --all it takes under eight minutes. Exit code 1 if any part failed; what was measured by
then is kept.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from bench import cases, harness, sources

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def exercise() -> None:
    """Every kernel once on small tensors, for the sanitizers."""
    import torch

    from attsnn import neurons, ops
    from bench import pfa, seams

    for dtype in cases.DTYPES.values():
        for steps in (1, 4, 8, 16, 33, 70):
            for make in (neurons.ma_snn, neurons.ms_resnet):
                x = torch.randn(steps, 3, 5, 43).to(dtype).cuda().requires_grad_()
                make(backend="fused")(x).backward(torch.ones(x.shape).to(dtype).cuda())
        threshold = torch.full((5,), 0.3).cuda().requires_grad_()
        x = torch.randn(20, 3, 5, 43).to(dtype).cuda().requires_grad_()
        out, v = ops.lif(x, leak=0.7, threshold=threshold, emit="relu_membrane", backend="fused")
        torch.autograd.backward([out, v], [torch.ones(t.shape).to(t.dtype).cuda() for t in (out, v)])
    for case, dtype in itertools.product(cases.SEAM_SMOKE[:-1], cases.DTYPES.values()):
        layer, tensors = seams.layer_of(case, "cuda"), seams.Tensors.of(case, dtype, "cuda")
        for function in seams.rows_of(lambda *x, of=layer: of.run(*x)[:2], layer, tensors).values():
            function()
    for case, dtype in itertools.product(cases.PFA_SMOKE, cases.DTYPES.values()):
        module = pfa.module_of(case, "cuda").to(torch.float64 if dtype == torch.float64 else torch.float32)
        for function in pfa.rows_of(module, module, *pfa.tensors_of(case, dtype, "cuda")).values():
            function()
    torch.cuda.synchronize()


def parts(everything: bool, smoke: bool, out: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """(what it is, command, environment) of every part, in order."""
    python, here = sys.executable, str(Path(__file__).resolve())
    if smoke:
        words = ["--device", "cpu", "--smoke", "--out", str(out), "--columns", "attsnn"]
        scripts = (
            ("pfa", "pfa", ["composed", "--case", "R3"]),
            ("bench", "neuron", ["SpikingJelly"]),
            ("seams", "seams", ["SpikingJelly", "--case", "G1"]),
            ("models", "model", ["SpikingJelly", "--case", "1x", "--threads", "1"]),
        )
        return [(what, [python, f"bench/{name}.py", *words, *more], {}) for what, name, more in scripts]
    found = [
        ("build", [python, "setup.py", "build_ext"], {"ATTSNN_CUDA": "1"}),
        ("tests", [python, "-m", "pytest", "-q", "-m", "cuda"], {"ATTSNN_REQUIRE": "fused,cuda"}),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in TOOLS if sanitizer else ():
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", python, here, "--exercise"]
        found.append((tool, command, {}))
    bench, seams, pfa, models, vae, stream = (
        [python, f"bench/{name}.py", "--device", "cuda", "--out", str(out)]
        for name in ("neuron", "seams", "pfa", "model", "vae", "stream")
    )
    if everything:
        found.append(("bench", [*bench, "--dtype", "fp32", "bf16", "fp16"], {}))
        found.append(("seams", [*seams, "--dtype", "fp32", "bf16", "fp16", "--ready", "240"], {}))
        found.append(("pfa", [*pfa, "--dtype", "fp32", "bf16", "fp16", "--ready", "240"], {}))
        found.append(("models", [*models, "--dtype", "bf16", "fp32"], {}))
        found.append(("vae", vae, {}))
        found.append(("stream", stream, {}))
        found.append(("growth", [*bench, "--growth"], {}))
        found.append(("cold start", [*bench, "--cold"], {}))
    else:
        quick = ["--case", *cases.QUICK_GROUPS, "--columns", "attsnn", "SpikingJelly"]
        short = ["--budget", "0.2", "--cap", "0.5"]
        found.append(("bench", [*bench, "--dtype", "fp32", "bf16", "fp16", *quick, *short], {}))
        # One layer of each kind, in the batch that fills a GPU; what torch.compile needs minutes for, once.
        quick = ["--case", *cases.QUICK_SEAMS, *short, "--columns", "attsnn"]
        found.append(("seams", [*seams, "--dtype", "fp32", "bf16", *quick, "composed", "SpikingJelly"], {}))
        compiled = ["--case", cases.QUICK_SEAMS[-1], "--ready", "100", "--columns", "attsnn", "torch.compile"]
        found.append(("seams, compiled", [*seams, "--dtype", "bf16", *compiled], {}))
        quick = ["--case", *cases.QUICK_PFA, *short, "--columns", "attsnn", "composed", "composed by step"]
        found.append(("pfa", [*pfa, "--dtype", "fp32", "bf16", *quick], {}))
        short = ["--budget", "3", "--cap", "9"]
        quick = ["--case", *cases.QUICK_MODELS, *short, "--columns", "attsnn", "composed"]
        found.append(("models", [*models, "--dtype", "bf16", *quick, "SpikingJelly"], {}))
        found.append(("vae", [*vae, "--budget", "1", "--cap", "6"], {}))
        found.append(("stream", [*stream, "--budget", "0.5", "--cap", "2"], {}))
    return found


PEERS = ("SpikingJelly", "composed", "torch.compile")


def summary(out: Path, device: str, above: float = 64e6) -> str:
    """The least and the median share of a copy's bandwidth, by dtype, neuron or seam, and row, and the least
    ratio to others; cases above 64 MB alone, which launch overhead does not rule.
    """
    from bench import report

    lines = [line for path in out.glob("*.jsonl") for line in harness.read(path) if line.get("row")]
    lines = [line for line in lines if line["device"] == device and (line["floor_bytes"] or 0) > above]
    lines.sort(key=lambda line: sources.BENCHES.index(line["bench"]))
    rows = []
    for key in dict.fromkeys(map(_summed, lines)):
        own = [x for x in lines if _summed(x) == key]
        ours = sorted((x for x in own if x["column"] == "attsnn"), key=lambda x: x["share_of_copy"])
        if not ours:
            continue
        worst, middle = ours[0], ours[len(ours) // 2]
        least, median = (f"{100 * line['share_of_copy']:.0f} %" for line in (worst, middle))
        ratios = [[x["ratio"][1] for x in own if x["column"] == name and x["ratio"]] for name in PEERS]
        found = [f"{min(some):.2f}x" if some else "-" for some in ratios]
        rows.append((", ".join(key), len(ours), f"{least} ({worst['case']})", median, *found))
    header = (f"above {above / 1e6:.0f} MB", "cases", "least of copy", "median")
    return report.table((*header, *(f"{name}, least" for name in PEERS)), rows)


def _summed(line: dict) -> tuple[str, ...]:
    """What a line of the summary is about."""
    seam = line["bench"] == "seams"
    return line["dtype"], line["case"].split()[0] if seam else line["neuron"], line["row"]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every case and column; takes much longer")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="a trial of this script where there is no GPU")
    parser.add_argument("--exercise", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.exercise:
        exercise()
        return 0
    import torch

    if not torch.cuda.is_available() and not chosen.smoke:
        sys.exit("bench/gpu.py: torch finds no CUDA GPU here; `make bench` measures on the CPU.")
    if chosen.smoke:
        with tempfile.TemporaryDirectory() as folder:
            return measure(parts(False, True, Path(folder)), Path(folder), "cpu", above=0)
    out = chosen.out.resolve()
    return measure(parts(chosen.all, False, out), out, "cuda")


def measure(wanted: list[tuple[str, list[str], dict[str, str]]], out: Path, device: str, **limits) -> int:
    """Runs the parts, whatever became of those before, and says how each ended; the exit code."""
    ends = []
    for name, command, environment in wanted:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=harness.ROOT, env={**os.environ, **environment}).returncode
        ends.append((name, "ok" if code == 0 else f"exit code {code}", f"{time.monotonic() - start:.0f} s"))
        if name == "build" and code != 0:
            break
    if device == "cuda" and not shutil.which("compute-sanitizer"):
        ends.append(("sanitizers", "compute-sanitizer is not installed", "-"))
    from bench import report

    where = harness.device_name(device)
    print(f"\n{where}, results in {out}\n")
    print(report.table(("part", "ended", "took"), ends), "\n")
    print(summary(out, where, **limits))
    return int(any(end.startswith("exit") for _, end, _ in ends))


if __name__ == "__main__":
    sys.exit(main())
