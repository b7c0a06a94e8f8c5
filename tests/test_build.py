"""setup.py: sentences for what is missing, a wheel that holds what it must, and drivers too old for the
kernels.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from attsnn import _extension

ROOT = Path(__file__).resolve().parent.parent


def build(tmp_path, **environment) -> subprocess.CompletedProcess:
    """`python setup.py build_ext` with that environment, which must fail before it configures anything."""
    command = [sys.executable, "setup.py", "build_ext"]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ATTSNN_CUDA": "yes"}, "ATTSNN_CUDA must be 0, 1 or auto, got 'yes'"),
        ({"ATTSNN_CUDA": "0", "CXX": "/nowhere/c++"}, "no C++ compiler was found at CXX=/nowhere/c++"),
        ({"ATTSNN_CUDA": "1", "CUDACXX": "/nowhere/nvcc"}, "CUDACXX=/nowhere/nvcc is no compiler"),
    ],
)
def test_sentences(tmp_path, environment, sentence):
    done = build(tmp_path, **environment)
    assert done.returncode != 0 and f"attsnn: {sentence}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("version", ["2.9.1", None])
def test_torch_too_old_or_missing(tmp_path, version):
    """A package of that name comes first on the path."""
    (tmp_path / "torch.py").write_text(
        f"__version__ = {version!r}" if version else "raise ImportError('none')"
    )
    done = build(tmp_path, PYTHONPATH=str(tmp_path), ATTSNN_CUDA="0")
    wanted = (
        "torch 2.9.1 is too old, >= 2.10 is wanted" if version else "torch is missing: install torch >= 2.10"
    )
    assert done.returncode != 0 and wanted in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_architecture_list(tmp_path):
    if _extension.compiled() is None or not _extension.compiled().cuda_runtime:
        pytest.skip("no nvcc")
    done = build(tmp_path, TORCH_CUDA_ARCH_LIST="ampere")
    assert done.returncode != 0 and "TORCH_CUDA_ARCH_LIST: 'ampere' is no architecture" in done.stderr


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
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "attsnn/_C.",
        "attsnn/data/digits.csv.gz",
        "attsnn/data/digits.md",
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
