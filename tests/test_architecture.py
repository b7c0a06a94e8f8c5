"""Who may know whom (the rooms of the house), and a few rules with teeth."""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import SKIPS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "attsnn"
LIGHT = {"torch", "numpy", "tqdm", "safetensors", "PIL", "tyro"}  # the core dependencies
MAY_IMPORT = {  # a room of attsnn -> the rooms of attsnn that it may import
    "__init__": {"attention", "interop", "layers", "models", "neurons", "ops", "profile", "reference"},
    "__main__": {"plot"},
    "_extension": {"_C"},
    "_files": set(),
    "_functions": set(),
    "_text": set(),
    "reference": set(),
    "ops": {"_extension", "reference"},
    "neurons": {"_extension", "ops", "reference"},
    "attention": {"_extension", "ops"},
    "layers": {"_extension", "ops", "neurons", "attention"},
    "models": {"_extension", "attention", "layers", "neurons"},
    "data": {"_extension", "_files"},
    "interop": {
        "_extension",
        "_functions",
        "_text",
        "attention",
        "layers",
        "models",
        "neurons",
        "ops",
        "reference",
    },
    "profile": {"_files", "_functions", "_text", "attention", "layers", "neurons", "ops"},
    "plot": {"_files", "_text"},
    "engine": {"_files", "_text", "plot"},
    "metrics": set(),
}
EVERYWHERE = {"_deprecation"}  # but in the reference, which imports nothing of attsnn
# What a room may import beside LIGHT, inside functions only.
EXTRAS = {
    "engine": {"matplotlib"},
    "interop": {"nir"},
    "plot": {"matplotlib", "jinja2"},
    "data": {"torchvision", "scipy"},
    "metrics": {"cleanfid", "torchvision"},
}


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path, tree: ast.AST | None = None):
    """(module, line) of every import, absolute, names imported from the package itself as its submodules."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
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
        known = MAY_IMPORT.get(own, set()) | (EVERYWHERE if own != "reference" else set())
        assert other in known or other == own, f"{path}:{line}: {own} may not import {module}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies(path):
    """Only the core dependencies; an extra of the room inside the function that uses it."""
    core = LIGHT | set(sys.stdlib_module_names) | {"attsnn"}
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {found for function in functions for found in imports(path, function)}
    for module, line in imports(path, tree):
        extras = EXTRAS.get(room(path), set()) if (module, line) in inside else set()
        name = module.split(".")[0]
        assert name in core | extras, f"{path}:{line}: {name} is no core dependency"


@pytest.mark.parametrize("path", sorted((ROOT / "train").glob("*.py")), ids=lambda p: p.name)
def test_trainers_share_the_job_of_images_alone(path):
    scripts = {p.stem for p in path.parent.glob("*.py")}
    found = {module for module, _ in imports(path) if module in scripts}
    assert found <= ({"images"} - {path.stem}), path


@pytest.mark.parametrize("name", ["imagenet", "cifar", "fmnist"])
def test_recipes_of_images_are_thin(name):
    lines = len((ROOT / "train" / f"{name}.py").read_text().splitlines())
    assert lines <= 160, (
        f"train/{name}.py has {lines} lines: what its task shares with others belongs to images.py"
    )


DATA = ("errors", "core", "formats", "datasets", "synthetic", "__main__")  # a room knows those before it


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_rooms_of_data(path):
    """No room knows a later one, and no data set another."""
    own = path.relative_to(PACKAGE / "data").with_suffix("").parts
    for module, line in imports(path):
        other = module.split(".")[2:]
        if not module.startswith("attsnn.data") or own == ("__init__",):
            continue
        assert other, f"{path}:{line}: wanted a room of attsnn.data, not all of it"
        assert DATA.index(other[0]) <= DATA.index(own[0]), f"{path}:{line}: {own[0]} may not import {module}"
        sets = own[0] == other[0] == "datasets" and own[1] != "__init__"
        assert not sets, f"{path}:{line}: a data set may not import another, {module}"


def test_only_one_file_imports_the_extension():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "train").glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        if path.name != "_extension.py":
            assert not re.search(r"import _C|attsnn\._C|from attsnn import .*\b_C\b", path.read_text()), path


@pytest.mark.parametrize(
    ("folder", "others"),
    [("attsnn", "bench tests train"), ("train", "bench tests train"), ("bench", "tests train")],
)
def test_nobody_imports_the_scripts(folder, others):
    """Tests may; bench is a package to itself. pytest finds test files by their bare names."""
    strangers = {*others.split(), *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    for path in (ROOT / folder).rglob("*.py"):
        for module, line in imports(path):
            assert module.split(".")[0] not in strangers, f"{path}:{line}: {folder} may not import {module}"


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
            assert len(path.read_text().splitlines()) <= 100 or path.name == "lif.h", path


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


def test_a_skip_has_a_reason_that_is_listed():
    """A reason that tests/conftest.py does not list is an error only where the test is skipped."""
    unlisted = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not re.search(r"skip(if)?$", name := ast.unparse(call.func)):
                continue
            said = {word.arg: word.value for word in call.keywords}
            reason = said.get("reason", call.args[0] if name == "pytest.skip" and call.args else None)
            told = ast.unparse(reason) if reason else ""
            words = isinstance(reason, ast.Constant | ast.JoinedStr) or not reason
            if words and not any(listed in told for listed in SKIPS):
                unlisted.append(f"{path.name}:{call.lineno}: {ast.unparse(call)}")
    assert not unlisted


IGNORED = 16  # lines that mypy is told to leave; a smaller number is welcome here, a greater one is not


def test_what_mypy_ignores():
    """Each on a line of its own, with its code; their number only falls."""
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines()]
    ignores = [line for line in lines if "type: ignore" in line]
    assert all(re.search(r"# type: ignore\[[a-z-]+(,[a-z-]+)*\]", line) for line in ignores)
    assert len(ignores) == IGNORED, "fewer than before: write the smaller number into IGNORED"
    assert not any(re.match(r"\s*# mypy:", line) for line in lines)


def test_one_file_of_ops_joins_passes_by_hand():
    """A gradient is registered with the dispatcher, but where an op works between its passes."""
    found = [p.name for p in sorted((PACKAGE / "ops").glob("*.py")) if "autograd.Function)" in p.read_text()]
    assert found == ["seam.py"]
