"""Who may know whom (the rooms of the house), and a few rules with teeth."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "attsnn"
LIGHT = {"torch", "numpy", "tqdm", "safetensors", "PIL", "tyro"}  # the core dependencies
MAY_IMPORT = {  # a room of attsnn -> the rooms of attsnn that it may import
    "__init__": {"attention", "layers", "models", "neurons", "ops", "reference"},
    "_extension": {"_C"},
    "reference": set(),
    "ops": {"_extension", "reference"},
    "neurons": {"_extension", "ops", "reference"},
    "attention": {"_extension", "ops"},
    "layers": {"_extension", "ops", "neurons"},
    "models": {"_extension", "attention", "layers", "neurons"},
    "data": {"_extension"},
    "engine": set(),
}
EXTRAS = {
    "data": set(),
    "engine": {"matplotlib"},
    "models": set(),
}  # beside LIGHT, imported inside functions only


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path):
    """(module, line) of every import, absolute, names imported from the package itself as its submodules."""
    package = ["attsnn", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "attsnn":
                yield from ((f"attsnn.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms(path):
    own = room(path)
    for module, line in imports(path):
        if not module.startswith("attsnn"):
            continue
        other = ([*module.split("."), "__init__"])[1]
        allowed = other in MAY_IMPORT[own] or other == own or (own, other) == ("engine", "__init__")
        assert allowed, f"{path}:{line}: {own} may not import {module}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies(path):
    """Only the core dependencies at the top of a file; an extra inside the function that uses it."""
    import sys

    known = LIGHT | set(sys.stdlib_module_names) | {"attsnn", "__future__"}
    top = {n.lineno for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)}
    for module, line in imports(path):
        name = module.split(".")[0]
        if line in top:
            assert name in known, f"{path}:{line}: {name} is no core dependency"


def test_only_one_file_imports_the_extension():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "train").glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        if path.name != "_extension.py":
            assert not re.search(r"import _C|attsnn\._C|from attsnn import .*\b_C\b", path.read_text()), path


def test_nobody_imports_the_scripts():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        assert not re.search(r"^(from|import) (train|bench)\b", path.read_text(), re.MULTILINE), path


def test_the_kernels_are_torch_free():
    """core/ and the kernels compile without torch."""
    for path in [
        *(ROOT / "csrc/core").glob("*.h"),
        *(ROOT / "csrc/cuda").glob("*_kernel.cuh"),
        ROOT / "csrc/cpu/rows.h",
    ]:
        included = re.findall(r'#include [<"]([^>"]+)', path.read_text())
        assert not [i for i in included if i.startswith(("torch", "ATen", "c10"))], path
        if "core" in path.parts:
            assert not [i for i in included if "/" in i], (
                f"{path}: core includes core and the standard library only"
            )
            assert len(path.read_text().splitlines()) <= 100 or path.name in (
                "call.h",
                "surrogate.h",
                "lif.h",
            ), path


def test_only_the_stable_abi():
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r'#include [<"](ATen|c10|torch/(all|extension|torch)\.h)', path.read_text()), (
            path
        )


def test_nothing_is_executed_from_a_file():
    """No pickle, no eval, no torch.load without weights_only."""
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "train").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "torch.jit.load"), path
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name != "torch.load" or keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert keywords.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
