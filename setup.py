"""python setup.py build_ext: builds attsnn._C in place. CMakeLists.txt describes the build; this drives it.

ATTSNN_CUDA=0|1|auto        CUDA kernels never, always, or where nvcc is found (auto)
TORCH_CUDA_ARCH_LIST="9.0"  GPU architectures; by default those of this machine's GPUs, else 8.0 and 9.0+PTX
CXX, CUDACXX                compilers
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)


def fail(sentence: str) -> None:
    sys.exit(f"attsnn: {sentence}")


def say(sentence: str) -> None:
    print(f"attsnn: {sentence}", flush=True)


def tool(name: str) -> str:
    """A build tool of this Python's environment, else of PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or fail(f"{name} is missing: run `pip install {name}`")


def torch_dir() -> Path:
    try:
        import torch
    except ImportError:
        fail("torch is missing: install torch >= 2.10 first, and build with --no-build-isolation")
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        fail(f"torch {torch.__version__} is too old, >= 2.10 is wanted: run `pip install -U torch`")
    return Path(torch.__file__).parent


def find_nvcc() -> "str | None":
    asked = os.environ.get("CUDACXX")
    if asked and not shutil.which(asked):
        fail(f"CUDACXX={asked} is not a compiler that can run: set it to nvcc, or unset it")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [asked, *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    return next((shutil.which(c) for c in candidates if c and shutil.which(c)), None)


def check_compiler() -> None:
    asked = os.environ.get("CXX")
    if asked and not shutil.which(asked.split()[0]):
        fail(f"no C++ compiler was found at CXX={asked}: name one that is installed, or unset CXX")
    if not asked and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        fail("no C++ compiler was found: install g++ >= 11 or clang++ >= 14, or set CXX")


def gpu_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST in CMake's words: "9.0a;8.0+PTX" -> "90a-real;80"."""
    import torch

    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked is None and torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        asked = " ".join(f"{major}.{minor}" for major, minor in sorted(found))
    chosen = []
    for arch in re.split(r"[\s;,]+", (asked or "8.0 9.0+PTX").strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if not match:
            fail(f"TORCH_CUDA_ARCH_LIST: {arch!r} is not a GPU architecture such as '9.0' or '8.0 9.0+PTX'")
        major, minor, variant, ptx = match.groups()
        chosen.append(f"{major}{minor}{variant}" + ("" if ptx else "-real"))
    return ";".join(chosen)


def cuda_arguments() -> list[str]:
    wish = os.environ.get("ATTSNN_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        fail(f"ATTSNN_CUDA must be 0, 1 or auto, got {wish!r}")
    nvcc = find_nvcc() if wish != "0" else None
    if wish == "1" and nvcc is None:
        fail("ATTSNN_CUDA=1, but nvcc was not found: install the CUDA toolkit, or set CUDA_HOME")
    if nvcc is None:
        say("CPU-only build (" + ("ATTSNN_CUDA=0" if wish == "0" else "nvcc was not found") + ")")
        return ["-DATTSNN_WITH_CUDA=OFF"]
    architectures = gpu_architectures()
    say(f"with CUDA kernels for {architectures} ({nvcc})")
    return [
        "-DATTSNN_WITH_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
    ]


def keep_resource_reports(build: Path) -> None:
    """Keeps what ptxas said of each CUDA source compiled in this build: registers, spills (a test reads
    it).
    """
    sections = re.split(
        r"^\[\d+/\d+\] ", (build / "building.log").read_text(errors="replace"), flags=re.MULTILINE
    )
    for section in sections:
        if source := re.match(r"Building CUDA object \S*/(\w+)\.cu\.o", section):
            (build / f"{source[1]}.ptxas").write_text(section)


def progress(line: str) -> list[str]:
    """What to say at a line of Ninja's: the source and its count, before the first one what takes long."""
    found = re.match(r"\[(\d+)/(\d+)\] (?:Building|Linking) \w+ .*?([^/\s]+?)(?:\.o)?$", line.strip())
    if not found:
        return []
    count, total, name = found.groups()
    said = [f"[{count}/{total}] {name}"]
    if int(count) == 1 and int(total) > 20:
        said.insert(0, f"{total} steps. CUDA kernels take the most time; ATTSNN_CUDA=0 leaves them out")
    return said


class CMakeBuild(build_ext):
    """Configures and builds with CMake and Ninja; in place where `build_ext` was typed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if "build_ext" in self.distribution.commands:
            self.inplace = True

    def build_extension(self, ext: Extension) -> None:
        torch = torch_dir()
        import pybind11

        check_compiler()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            *(tool("cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}",  # the same for every command: relinks nothing
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_DIR={torch}",
            *cuda_arguments(),
        ]
        self._run(configure, build, "configuring")
        self._run([tool("cmake"), "--build", str(build)], build, "building")
        keep_resource_reports(build)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)

    def _run(self, command: list[str], build: Path, what: str) -> None:
        build.mkdir(parents=True, exist_ok=True)
        log = build / f"{what}.log"
        with (
            open(log, "w") as out,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            ) as running,
        ):
            for line in running.stdout:
                out.write(line)
                for sentence in progress(line):
                    say(sentence)
        code = running.returncode
        if code != 0:
            lines = log.read_text(errors="replace").splitlines()
            errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
            print("\n".join((errors or lines)[-12:]), file=sys.stderr)
            fail(f"{what} failed; the whole output is in {log}")


setup(ext_modules=[Extension("attsnn._C", [])], cmdclass={"build_ext": CMakeBuild})
