"""Which sources a figure is of: a hash of them goes with it, and a figure of other sources is stale.

Of Python, what runs counts: comments, docstrings and annotations may change.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LAYER = ("csrc", "attsnn/ops*")
NETWORK = (*_LAYER, "attsnn/layers*", "attsnn/neurons*", "attsnn/attention*", "attsnn/models*")
# How the names of what no call of a network knows begin: decoders of recordings, converters of checkpoints.
_BESIDE = "csrc/cpu/events", "attsnn/models/convert"
# What our column of a bench runs: the kernels, and the Python around them; of others all of `NETWORK`.
SOURCES = {
    **dict.fromkeys(("neuron", "growth", "cold start", "pfa"), _LAYER),
    **dict.fromkeys(("seams", "model"), NETWORK),
}
BENCHES = (*SOURCES, "vae", "stream", "shipped")  # in the order of their tables
_FOR_TYPES = ("typing", "collections.abc", "types")  # modules of which only names of types are taken
_TYPES = ("annotation", "returns", "type_comment")  # fields of a syntax tree


def csrc_hash(root: Path = ROOT) -> str:
    """A hash of every source of the kernels in a work tree."""
    return _hash(("csrc",), root)


def source_hash(bench: str, root: Path = ROOT) -> str:
    """A hash of what `bench` times of ours in a work tree: figures of another one are stale."""
    return _hash(SOURCES.get(bench, NETWORK), root)


def _hash(patterns: Iterable[str], root: Path) -> str:
    """Of the files, and of all in the folders, that match a pattern, but for what no network calls."""
    digest = hashlib.sha256()
    found = {path for pattern in patterns for top in root.glob(pattern) for path in (top, *top.rglob("*"))}
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        if path.is_file() and path.suffix not in (".md", ".pyc", ".pyi") and not name.startswith(_BESIDE):
            code = path.read_bytes()
            digest.update(name.encode() + b"\0" + (runs(code).encode() if path.suffix == ".py" else code))
    return digest.hexdigest()[:12]


@functools.cache  # eight benches share most files
def runs(code: bytes | str) -> str:
    """What of a Python file runs: its syntax tree without docstrings, annotations and imports for them."""
    return _told(ast.parse(code))


def _told(node: object) -> str:
    if isinstance(node, list):
        return "[" + " ".join(filter(None, map(_told, node))) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if _is_for_types(node):
        return ""
    if isinstance(node, ast.AnnAssign) and node.value:
        node = ast.Assign([node.target], node.value)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
        node.body = node.body[1:]
    # Empty fields are those that another version of Python may not have.
    fields = {
        name: value for name, value in ast.iter_fields(node) if name not in _TYPES and value not in (None, [])
    }
    return f"{type(node).__name__}({' '.join(f'{name}={_told(value)}' for name, value in fields.items())})"


def _is_for_types(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module in _FOR_TYPES
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
