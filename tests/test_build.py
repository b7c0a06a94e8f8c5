"""setup.py: sentences for what is missing, a wheel that holds what it must, and drivers too old for the
kernels.
"""

import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
import torch

from attsnn import _extension

ROOT = Path(__file__).resolve().parent.parent
CALL = re.compile(r"\b(?:call|jmp) +[0-9a-f]+ <(.*)>$")


def build(root=ROOT, **environment) -> subprocess.CompletedProcess:
    """`python setup.py build_ext` with that environment, which in ROOT must fail before it configures."""
    command = [sys.executable, "setup.py", "build_ext"]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ATTSNN_CUDA": "yes"}, "ATTSNN_CUDA must be 0, 1 or auto, got 'yes'"),
        ({"ATTSNN_CUDA": "0", "CXX": "/nowhere/c++"}, "no C++ compiler was found at CXX=/nowhere/c++"),
        ({"ATTSNN_CUDA": "1", "CUDACXX": "/nowhere/nvcc"}, "CUDACXX=/nowhere/nvcc is not a compiler"),
    ],
)
def test_sentences(environment, sentence):
    done = build(**environment)
    assert done.returncode != 0 and f"attsnn: {sentence}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", ["2.9.1", None])
def test_torch_too_old_or_missing(tmp_path, version):
    """A package of that name comes first on the path."""
    (tmp_path / "torch.py").write_text(
        f"__version__ = {version!r}" if version else "raise ImportError('none')"
    )
    done = build(PYTHONPATH=str(tmp_path), ATTSNN_CUDA="0")
    wanted = (
        "torch 2.9.1 is too old, >= 2.10 is wanted" if version else "torch is missing: install torch >= 2.10"
    )
    assert done.returncode != 0 and wanted in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_architecture_list():
    if _extension.compiled() is None or not _extension.compiled().cuda_runtime:
        pytest.skip("no nvcc")
    done = build(TORCH_CUDA_ARCH_LIST="ampere")
    assert done.returncode != 0 and "TORCH_CUDA_ARCH_LIST: 'ampere' is not a GPU architecture" in done.stderr


@pytest.fixture
def script(monkeypatch):
    """setup.py as a module, which builds nothing when it is run."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("attsnn_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("wish", "why"), [("0", "ATTSNN_CUDA=0"), ("auto", "nvcc was not found")])
def test_a_cpu_only_build_says_so(script, monkeypatch, capsys, wish, why):
    monkeypatch.setenv("ATTSNN_CUDA", wish)
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert script.cuda_arguments() == ["-DATTSNN_WITH_CUDA=OFF"]
    assert capsys.readouterr().out == f"attsnn: CPU-only build ({why})\n"


def test_a_cuda_build_without_nvcc(script, monkeypatch):
    monkeypatch.setenv("ATTSNN_CUDA", "1")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="attsnn: ATTSNN_CUDA=1, but nvcc was not found"):
        script.cuda_arguments()


@pytest.mark.parametrize(
    ("what", "description"),
    [
        ("configuring", "include(compiler.cmake)"),
        ("building", "add_custom_target(one ALL ${CMAKE_COMMAND} -P ${CMAKE_SOURCE_DIR}/compiler.cmake)"),
    ],
)
def test_a_failed_build(tmp_path, what, description):
    """Shows the compiler's errors and ends in one sentence that names the log, which has the rest."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "torch.py").write_text("__version__ = '2.10.0'")
    project = "cmake_minimum_required(VERSION 3.26)\nproject(broken NONE)\n"
    (tmp_path / "CMakeLists.txt").write_text(project + description)
    compiler = 'message("chatter")\nmessage(FATAL_ERROR "some.cpp:3: error: no such thing")\n'
    (tmp_path / "compiler.cmake").write_text(compiler)
    done = build(tmp_path, PYTHONPATH=str(tmp_path), ATTSNN_CUDA="0")
    (log,) = tmp_path.glob(f"build/*/{what}.log")
    assert done.returncode != 0 and "attsnn: CPU-only build (ATTSNN_CUDA=0)\n" in done.stdout
    *errors, sentence = done.stderr.splitlines()
    assert sentence == f"attsnn: {what} failed; the whole output is in {log}"
    assert "some.cpp:3: error: no such thing" in "".join(errors) and "chatter" not in done.stderr
    assert "Traceback" not in done.stderr and "chatter" in log.read_text()


def test_a_failed_build_without_an_error_line(script, tmp_path, capfd):
    """Shows the last lines instead."""
    command = [sys.executable, "-c", "print(*range(100), 'Killed', sep='\\n'); raise SystemExit(137)"]
    with pytest.raises(SystemExit, match="^attsnn: building failed; the whole output is in .*building.log$"):
        script.CMakeBuild._run(None, command, tmp_path, "building")
    assert capfd.readouterr().err.split() == [*map(str, range(89, 100)), "Killed"]


def test_progress(script):
    """A line a source, with its count; nothing where nothing is to do."""
    first = "[1/129] Building CUDA object CMakeFiles/_C.dir/csrc/cuda/seam_float.cu.o\n"
    assert script.progress(first)[0].startswith("129 steps. CUDA kernels take the most time")
    assert script.progress(first)[1:] == ["[1/129] seam_float.cu"]
    assert script.progress("[7/9] Building CXX object a.dir/csrc/ops.cpp.o") == ["[7/9] ops.cpp"]
    assert script.progress("[9/9] Linking CXX shared module /a/_C.so") == ["[9/9] _C.so"]
    for line in ("ninja: no work to do.", "csrc/ops.cpp:3: warning: [1/2]", "ptxas info    : 0 bytes gmem"):
        assert script.progress(line) == []


def test_imports_of_the_extension(fused):
    """Only C symbols of torch, so that one build serves each >= 2.10; none that a CPU-only one lacks."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", fused.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kinds = {name: kind for kind, name in (line.split(maxsplit=1) for line in done.stdout.splitlines())}
    assert "aoti_torch_get_sizes" in kinds  # it is nm's list of what is imported
    assert [name for name in kinds if re.search(r"\b(at|c10|torch|caffe2)::", name)] == []
    assert not any("cuda_stream" in name for name in kinds)


def test_macros_of_torch():
    """Those that the headers of 2.10 and 2.11 have, too: that of errors has another name since 2.13. The
    target version in CMakeLists.txt guards functions, not macros.
    """
    known = {"STABLE_TORCH_LIBRARY", "STABLE_TORCH_LIBRARY_IMPL", "STD_TORCH_CHECK", "TORCH_BOX"}
    known |= {"TORCH_ERROR_CODE_CHECK", "AOTI_TORCH_SUCCESS"}
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    text = re.sub(r"//.*|\"[^\"\n]*\"", "", "\n".join(path.read_text() for path in sources))
    used = set(re.findall(r"\b(?:[A-Z]+_)*TORCH_[A-Z_]+\b", text))
    assert used and used <= known, used - known


@pytest.mark.parametrize("loaded", [True, False])
def test_where_the_current_stream_is_asked(fused, tmp_path, loaded):
    """Of torch's library for CUDA, as Python loads it: in no scope but its own. Here one stands for it."""
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    if torch.version.cuda is not None:
        assert fused.finds_cuda_streams()
        return
    library, source = tmp_path / "libtorch_cuda.so", tmp_path / "streams.c"
    source.write_text("int aoti_torch_get_current_cuda_stream(int d, void** s) { *s = 0; return 0; }")
    words = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", library, source]
    subprocess.run([os.environ.get("CC", "cc"), *words], check=True)
    load = f"import ctypes; kept = ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_LOCAL)\n" if loaded else ""
    program = f"{load}import torch; from attsnn import _C; print(_C.finds_cuda_streams())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == str(loaded), done.stderr


def test_several_architectures(fused, tmp_path):
    """The list of a default build reaches the compiler as one word."""
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    cache = (ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "CMakeCache.txt").read_text()
    known = dict(re.findall(r"^(\w+):\w+=(.*)$", cache, re.MULTILINE))
    names = ("TORCH_DIR", "pybind11_DIR", "Python_EXECUTABLE", "CMAKE_CUDA_COMPILER", "CMAKE_MAKE_PROGRAM")
    configure = [known["CMAKE_COMMAND"], "-G", "Ninja", "-S", ROOT, "-B", tmp_path, "-DATTSNN_WITH_CUDA=ON"]
    configure += [f"-D{name}={known[name]}" for name in names] + ["-DCMAKE_CUDA_ARCHITECTURES=80-real;90"]
    done = subprocess.run([*map(str, configure)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    (command,) = [c["command"] for c in commands if c["file"].endswith("csrc/ops.cpp")]
    assert '-DATTSNN_CUDA_ARCHITECTURES="80-real 90"' in shlex.split(command)


def as_built(module) -> dict[str, str]:
    """The environment that asks setup.py for what the module was built with, so that nothing is compiled."""
    words = re.sub(
        r"(\d+)(\d[af]?)(-real)?",
        lambda m: f"{m[1]}.{m[2]}{'' if m[3] else '+PTX'}",
        module.cuda_architectures,
    )
    return {"ATTSNN_CUDA": "1" if module.cuda_runtime else "0", "TORCH_CUDA_ARCH_LIST": words}


def test_wheel(fused, tmp_path):
    """`pip wheel` from the build that is there: the extension, the digits and their attribution are in it."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    env = {**os.environ, **as_built(fused)}
    done = subprocess.run([*pip, "-w", tmp_path, ROOT], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("attsnn-*.whl")
    files = zipfile.ZipFile(wheel)
    names = files.namelist()
    rows = gzip.decompress(files.read("attsnn/data/datasets/digits.csv.gz")).decode().splitlines()
    assert len([row for row in rows if not row.startswith("#")]) == 1797
    for part in (
        "attsnn/_C.",
        "attsnn/data/datasets/digits.csv.gz",
        "attsnn/data/datasets/digits.md",
        "attsnn/models/ma_snn.py",
    ):
        assert any(name.startswith(part) for name in names), part
    assert not any(name.startswith(("tests/", "train/", "bench/")) for name in names)


@pytest.mark.parametrize(("driver", "have"), [(12080, "12.8"), (0, "none")])
def test_a_driver_too_old(monkeypatch, driver, have):
    module = SimpleNamespace(cuda_runtime=13000, cuda_driver_version=lambda: driver)
    monkeypatch.setattr(_extension, "_C", module)
    assert f"need a driver for CUDA 13, this machine's serves {have}" in _extension._cuda_obstacle()
    module.cuda_driver_version = lambda: 13010
    assert _extension._cuda_obstacle() is None
    module.cuda_runtime = 0
    assert "this build is CPU-only" in _extension._cuda_obstacle()


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_code_for_a_wide_instruction_set_calls_none_for_a_narrow_one(fused):
    """A lambda that GCC leaves out of `on_avx512` runs in scalars: right, and several times slower. And PFA's
    loops alone contract a product and a sum, or the neurons' bits would depend on the processor.
    """
    extension = _extension.compiled()
    if extension.isa() == "baseline":
        pytest.skip("no wide instruction set here, or none compiled")
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", extension.__file__]
    within, wide, left, contracting = "", 0, set(), set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        for line in listing.stdout:
            if line.endswith(">:\n"):
                within = line.split("<", 1)[1][:-3]
                within = within if "attsnn::on_avx" in within[:40] else ""
                wide += bool(within)
            elif "\tvfmadd" in line:
                contracting.add(within)
            elif within and "attsnn::" in line and (call := CALL.search(line)) and "+0x" not in line:
                left.add(f"{within[:120]} calls {call[1][:120]}")
    assert wide > 100 and not left, "\n".join(sorted(left))
    assert contracting and all("_contracted<attsnn::" in name for name in contracting), contracting
