"""The CUDA kernels' programs for the host (tests/cpp): built by CMakeLists.txt, run case by case."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def build(*sources: str) -> Path:
    """The folder of the programs of these sources, every variant. A folder for each set: two test files may
    build at the same time.
    """
    folder = ROOT / "build" / f"on_host_{sources[0]}"
    torch_dir = f"-DTORCH_DIR={Path(torch.__file__).parent}"
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    configure = ["-G", "Ninja", "-S", ROOT, "-B", folder, torch_dir, ninja, "-DATTSNN_EXTENSION=OFF"]
    targets = [f"on_host_{source}" for source in sources]
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
