"""README and the pages of docs: their programs run, their links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "csrc" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ALONE = ("README.md", "start.md")  # whose programs need no file and no peer, but for those that name one


def programs(page: Path) -> str:
    """The programs of a page, one after the other."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return "\n".join(block for block in blocks if "spikingjelly" not in block)


@pytest.mark.parametrize("name", ALONE)
def test_programs_run(name, tmp_path):
    page = next(page for page in PAGES if page.name == name)
    text = programs(page)
    assert text.count("import torch") >= 1
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page):
    """Every link to a file of the project leads to one."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing, missing


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# ---- environment variables
# ------------------------------------------------------------------------------------------

READS = [  # how sources ask for a variable
    r'environ(?:\.get|\.setdefault)?[(\[]\s*"([A-Z_]+)"',
    r'getenv\("([A-Z_]+)"',
    r'^\s*names = \{"([A-Z_]+)": 1, "([A-Z_]+)": 0, "([A-Z_]+)": 0\}',  # engine/environment.py
    r'^_VARIABLES = \("([A-Z_]+)", "([A-Z_]+)", "([A-Z_]+)"\)',  # engine/memory.py
]
PYTHONS = {"PYTHONPATH"}  # its own
SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh"}


def asked() -> set[str]:
    """Every variable that the package, the build, tests and benches read."""
    folders = ("attsnn", "bench", "csrc", "tests", "train")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    found = set()
    for path in [*files, ROOT / "setup.py"]:
        text = path.read_text(encoding="utf-8")
        for pattern in READS:
            for match in re.finditer(pattern, text, re.MULTILINE):
                found |= set(match.groups())
    return found - PYTHONS


def test_environment_variables_are_those_of_the_page():
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert asked() == listed


def test_the_package_asks_in_one_module():
    asking = {
        p.name for p in (ROOT / "attsnn").rglob("*.py") if "os.environ" in p.read_text(encoding="utf-8")
    }
    assert asking == {"environment.py", "memory.py"}
