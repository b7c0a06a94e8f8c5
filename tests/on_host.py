"""The CUDA kernels' programs for the host (tests/cpp): built by CMakeLists.txt, run case by case; and what
ptxas reported of the kernels, against what their drivers ask for.
"""

import fcntl
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


# The programs' sources by the test file that runs them.
SETS = {
    "neuron": ("neuron", "reduce", "launch"),
    "seam": ("seam", "seam_neuron", "gates"),
    "pfa": ("pfa",),
    "events": ("events",),
}


def build(*names: str) -> Path:
    """The folder of the programs. What of these sets is not up to date is built, in every variant;
    of two processes that build, one waits.
    """
    folder, sources = ROOT / "build" / "on_host", [source for name in names for source in SETS[name]]
    folder.mkdir(parents=True, exist_ok=True)
    torch_dir = f"-DTORCH_DIR={Path(torch.__file__).parent}"
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    configure = ["-G", "Ninja", "-S", ROOT, "-B", folder, torch_dir, ninja, "-DATTSNN_EXTENSION=OFF"]
    targets = [f"on_host_{source}" for source in sources]
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (configure, ["--build", folder, "--target", *targets]):
            done = subprocess.run([tool("cmake"), *map(str, arguments)], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "tests" / "cpp"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)


def cases(program: Path) -> list[str]:
    return run(program).stdout.split("\n")[:-1]


def must_be_equal(program: Path, *case: str) -> None:
    done = run(program, *case)
    assert done.returncode == 0 and done.stdout == "equal\n", done.stdout + done.stderr[-4000:]


# Of the kernels that csrc/cuda/<family>*.cu compile: the programs that say what their drivers ask for.
FAMILIES = {"neuron": ("neuron",), "seam": ("seam", "seam_neuron", "gates"), "pfa": ("pfa",)}
SHARED = {"sm_80": 163, "sm_90": 227}  # KiB that a block can have where it asks, static arrays included
LEAST_SHARED = 99  # of the architectures since sm_80
STATIC, REGISTERS = 48 * 1024, 65536  # bytes, and registers, of a block


class Kernel(NamedTuple):
    """A kernel as ptxas compiled it."""

    family: str
    mangled: str
    architecture: str
    registers: int
    shared: int  # bytes of its static arrays
    spilled: int  # bytes

    @property
    def name(self) -> str:
        """Without namespace and arguments."""
        length, rest = re.match(r"_ZN6attsnn(\d+)(.*)", self.mangled).groups()
        return rest[: int(length)]


def compiled() -> list[Kernel]:
    """Every kernel of ptxas' reports, which setup.py keeps beside the build."""
    kernels = []
    for path in (ROOT / "build" / f"cmake-{sys.implementation.cache_tag}").glob("*.ptxas"):
        for report in path.read_text().split("Compiling entry function ")[1:]:
            mangled, architecture = re.match(r"'(\S+)' for '(\w+)'", report).groups()
            numbers = (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill")
            most = [max(map(int, re.findall(number, report)), default=0) for number in numbers]
            kernels.append(Kernel(path.stem.split("_")[0], mangled, architecture, *most))
    return kernels


def launch_bounds() -> dict[str, int]:
    """The threads a block that each kernel of csrc/cuda declares; the most where it chooses by its types."""
    sources = {path: path.read_text() for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*"))}
    constants = {}
    for text in sources.values():
        for line in re.findall(r"inline constexpr int .*", text):
            constants |= {name: int(number) for name, number in re.findall(r"(k\w+) = (\d+)[,;]", line)}
    bounds = {}
    for path, text in sources.items():
        for place in re.finditer(r"__global__", text):
            declared = re.match(
                r"__global__ void __launch_bounds__\(([^,()]+)(?:,[^()]+)?\)\s+(\w+)\(", text[place.start() :]
            )
            line = text.count("\n", 0, place.start()) + 1
            assert declared, f"{path}:{line}: a kernel without __launch_bounds__(a named number of threads)"
            named = [constants[name] for name in re.findall(r"\w+", declared[1]) if name in constants]
            assert named, f"{path}:{line}: {declared[1]} is no `inline constexpr int` of csrc/cuda"
            bounds[declared[2]] = max(named)
    return bounds


def launches(*programs: Path) -> dict[str, tuple[int, int]]:
    """By mangled name of a kernel, the most threads and bytes of dynamic shared memory that its drivers ask
    for.
    """
    asked = {}
    for program in programs:
        done = run(program, "launches")
        assert done.returncode == 0, done.stderr[-4000:]
        for line in done.stdout.splitlines():
            mangled, *numbers = line.split()
            asked[mangled] = tuple(map(max, map(int, numbers), asked.get(mangled, (0, 0))))
    return asked


def unfit(kernel: Kernel, bound: int, threads: int, dynamic: int) -> str:
    """What of a kernel's launch a device would refuse, "" where there is nothing. Registers are allocated to
    a warp 256 at a time, warps four at a time.
    """
    a_warp = -(-kernel.registers * 32 // 256) * 256
    registers = a_warp * -(-bound // 128) * 4
    most = 1024 * SHARED.get(kernel.architecture, LEAST_SHARED)
    wrong = {
        f"{threads} threads where __launch_bounds__ says {bound}": threads > bound,
        f"{registers} registers a block, there are {REGISTERS}": registers > REGISTERS,
        f"{kernel.shared} bytes of static arrays, there are {STATIC}": kernel.shared > STATIC,
        f"{kernel.shared} bytes of static arrays and {dynamic} of dynamic shared memory, there are {most}": (
            kernel.shared + dynamic > most
        ),
    }
    said = [what for what, holds in wrong.items() if holds]
    return f"{kernel.mangled} for {kernel.architecture}: {'; '.join(said)}" if said else ""


def must_fit(family: str, folder: Path) -> None:
    """Every kernel of a family, as compiled, can be launched as its drivers launch it."""
    kernels = [kernel for kernel in compiled() if kernel.family == family]
    asked = launches(*(folder / f"{program}_address" for program in FAMILIES[family]))
    strangers = {kernel.mangled for kernel in kernels} ^ set(asked)
    assert not strangers, (
        "compiled and not in `launch_all` of a program, or the reverse; is the build that of these sources? "
        f"{sorted(strangers)}"
    )
    bounds = launch_bounds()
    found = [unfit(kernel, bounds[kernel.name], *asked[kernel.mangled]) for kernel in kernels]
    assert not any(found), "\n".join(filter(None, found))


if __name__ == "__main__":  # `make test` builds them all first, on every core
    build(*SETS)
