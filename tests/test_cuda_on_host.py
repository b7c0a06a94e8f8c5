"""The CUDA kernels without a GPU: run on the host under the sanitizers, and what the compiler says of
them.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CASES = [
    "float",
    "double",
    "bfloat16",
    "half",
    "emits",
    "surrogates",
    "bits",
    "learned",
    "repeated",
]  # and "soft spikes"


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


@pytest.fixture(scope="module")
def programs():
    """The host-run programs, configured and built by CMakeLists.txt."""
    build = ROOT / "build" / "on_host"
    torch_dir = f"-DTORCH_DIR={Path(torch.__file__).parent}"
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    configure = ["-G", "Ninja", "-S", ROOT, "-B", build, torch_dir, ninja, "-DATTSNN_EXTENSION=OFF"]
    for arguments in (configure, ["--build", build, "--target", "on_host"]):
        done = subprocess.run([tool("cmake"), *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / "tests" / "cpp"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("case", [*CASES, "soft spikes"])
def test_neuron_kernels_equal_the_cpu_kernels(programs, case, sanitizer):
    done = run(programs / f"neuron_{sanitizer}", case)
    assert done.returncode == 0 and done.stdout == "equal\n", done.stdout + done.stderr[-4000:]


def test_every_case_is_run(programs):
    listed = run(programs / "neuron_address").stdout.split("\n")[:-1]
    assert sorted(listed) == sorted([*CASES, "soft spikes"])


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_reduction(programs, sanitizer):
    done = run(programs / f"reduce_{sanitizer}")
    assert done.returncode == 0 and done.stdout == "equal\n", done.stdout + done.stderr[-4000:]


def test_a_missing_barrier_is_reported(programs):
    done = run(programs / "reduce_no_barrier")
    assert done.returncode != 0 and ("data race" in done.stderr or "wanted" in done.stdout)


IO_TYPES = {"float": "f", "double": "d", "Half": "N3c104HalfE", "BFloat16": "N3c108BFloat16E"}  # mangled


def test_kernels_compile_without_spills(fused):
    """ptxas' report of the build: no kernel spills registers, and those of every type and architecture that
    was asked for are there.
    """
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    reports = (ROOT / "build" / f"cmake-{sys.implementation.cache_tag}").glob("*.ptxas")
    report = "".join(path.read_text() for path in reports)
    kernels = re.findall(
        r"Compiling entry function '(\S+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
        re.DOTALL,
    )
    spilled = [name for name, _, stores, loads in kernels if int(stores) or int(loads)]
    assert not spilled, spilled
    asked = {"sm_" + word.removesuffix("-real") for word in re.split(r"[ ;]", fused.cuda_architectures)}
    assert asked and asked == {architecture for _, architecture, *_ in kernels}
    for architecture in asked:
        names = [name for name, own, *_ in kernels if own == architecture]
        for word in ("neuron_forward", "neuron_backward", "neuron_backward_from_bits"):
            for io, mangled in IO_TYPES.items():  # of kernel<Cell, Io, ...>
                wanted = re.compile(rf"\d{word}_kernelINS_\d+[A-Za-z]+E{mangled}")
                assert any(map(wanted.search, names)), f"no {word}_kernel of {io} for {architecture}"
        for word in ("sum_tiles_kernel", "sum_partials_kernel"):
            assert sum(word in name for name in names) >= 2, f"{word} for {architecture}"
