"""README and the pages of docs: their programs run, their commands parse, their links and names exist."""

import argparse
import functools
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "csrc" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What the pages write in one language: shell commands, programs, and what a command prints.
LANGUAGES = {"sh", "python", "text"}


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(TEXTS[page]) if kind == language]


def test_every_block_has_a_language():
    kinds = {(page, kind) for page, text in TEXTS.items() for kind, _ in BLOCK.findall(text)}
    assert {kind for _, kind in kinds} == LANGUAGES, kinds


# ---- programs
# ------------------------------------------------------------------------------------------

# What a program may need that only `make test-peers` installs, and why it is skipped without.
PEERS = {
    "spikingjelly": "no SpikingJelly: make test-peers",
    "nir": "extra nir: make test-peers",
    "onnx": "no onnx: make test-peers",
}
PROGRAMS = [page for page in TEXTS if blocks(page, "python")]


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with what programs read: trained runs, a prepared store, a published checkpoint."""
    import dvs
    import vae
    from test_convert import published_fmnist

    from attsnn import models
    from attsnn.data.synthetic.sets import synthesise

    folder = tmp_path_factory.mktemp("desk")
    brief = ["--epochs", "1", "--limit-batches", "1", "--runs-dir", str(folder / "runs"), "--workers", "0"]
    brief += ["--synthetic", "20", "--batch", "4", "--precision", "fp32"]
    events = "gesture --name plain --attention None --steps 4 --clips 1 --channels 4 4 4 --hidden 8"
    images = "mnist --name digits --steps 2 --latent 8 --k 2 --widths 4 4 4 4 --hidden 8 16"
    assert dvs.main([*events.split(), *brief]) == 0
    assert vae.main([*images.split(), *brief]) == 0
    for name in ("samples", "gesture"):
        (folder / "runs" / name).symlink_to(folder / "runs" / "plain")
    synthesise("cifar10_dvs", folder, 100).rename(folder / "STORE")
    net = models.create("pfa_fmnist", channels=4, hidden=8)
    torch.save({"model": published_fmnist(net)}, folder / "published.pth")
    return folder


@pytest.mark.parametrize("page", PROGRAMS)
def test_programs_run(page, desk, tmp_path, monkeypatch):
    """The programs of a page, one after the other, as if they were one; the peers' alone, where they are."""
    for path in desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    programs, missing = [], []
    for text in blocks(page, "python"):
        peer = next((peer for peer in PEERS if re.search(rf"\b{peer}\b", text)), None)
        if peer and not importlib.util.find_spec(peer):
            missing.append(PEERS[peer])
        else:
            programs.append(text)
    if not programs:
        pytest.skip(missing[0])
    whole = tmp_path / "page.py"
    whole.write_text("\n".join(programs), encoding="utf-8")
    runpy.run_path(str(whole), run_name="__main__")


def test_the_network_of_the_guide_lives(tmp_path):
    """It fires, and every layer gets gradients: health finds nothing."""
    from attsnn.profile import health

    whole = tmp_path / "page.py"
    whole.write_text("\n".join(blocks("docs/network.md", "python")), encoding="utf-8")
    names = runpy.run_path(str(whole))
    assert "nothing found" in str(health(names["net"], [(names["frames"], names["labels"])]))


# ---- commands
# ------------------------------------------------------------------------------------------


class Parsed(Exception):  # noqa: N818
    """A command line was understood."""


@pytest.fixture
def parsers(monkeypatch, capsys):
    """Every parser of ours, which ends once it has understood its command line."""

    def stop(*args, **kwargs):
        raise Parsed

    def then_stop(parse):
        def parsed(*args, **kwargs):
            if args and inspect.isfunction(args[0]):  # tyro would call it
                args = (functools.wraps(args[0])(lambda *_, **__: stop()), *args[1:])
            parse(*args, **kwargs)
            stop()

        return parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args))
    for holder, name in ((tyro.extras, "overridable_config_cli"), (tyro, "cli")):
        monkeypatch.setattr(holder, name, then_stop(getattr(holder, name)))
    return capsys


def commands() -> list[str]:
    """Every command of the pages and of docs/results.json, on one line each."""
    found = [text.replace("\\\n", " ") for page in TEXTS for text in blocks(page, "sh")]
    rows = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    lines = [line for text in found for line in text.splitlines()] + [
        f"python {row['command']}" for row in rows
    ]
    return [*dict.fromkeys(line for line in lines if shlex.split(line, comments=True))]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command, parsers, monkeypatch):
    """By the parsers that will read them; nothing is run."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    program, *words = words
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        real = argparse.ArgumentParser.parse_known_args
        asked, _ = real(get_args_parser(), words)
        program, words = "python", [asked.training_script, *asked.training_script_args]
    if program.endswith("python"):
        understood(words, monkeypatch)
    elif program == "make":
        done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "pip":
        assert words[0] == "install"
        extras = re.findall(r"\[([\w,]+)\]", command)
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(re.search(rf"^{extra} = \[", text, re.M) for group in extras for extra in group.split(","))
    else:
        assert os.access(ROOT / program, os.X_OK), program


def understood(words: list[str], monkeypatch) -> None:
    """A command line of Python's."""
    monkeypatch.chdir(ROOT)
    if words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[2:] if not word.startswith("-"))
        return
    if words[0] == "setup.py":
        assert words[1:] == ["build_ext"]
        return
    module = words[1] if words[0] == "-m" else None
    script = words[2:] if module else words[1:]
    monkeypatch.setattr(sys, "argv", [words[0], *script])
    if script or "argparse" in (text := (ROOT / words[0]).read_text(encoding="utf-8")) or "tyro" in text:
        with pytest.raises(Parsed):
            runpy.run_module(module, run_name="__main__", alter_sys=False) if module else runpy.run_path(
                words[0], run_name="__main__"
            )


# ---- links and names
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=[*TEXTS])
def test_links(page):
    """Every link to a file of the project leads to one."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing, missing


ROOTS = "attsnn|layers|neurons|ops|models|engine|data|profile|reference|plot|metrics"
NAME = re.compile(rf"`((?:{ROOTS})\.[\w.]+)")
FILES = (".cpp", ".json", ".jsonl")  # how files end whose names begin like those of modules


@pytest.mark.filterwarnings("error:.* will not be in attsnn:DeprecationWarning")
def test_names():
    """Every name of the package that a page writes is one."""
    unknown = [(page, name) for page, text in TEXTS.items() for name in NAME.findall(text) if not there(name)]
    unknown = [(page, name) for page, name in unknown if not name.endswith(FILES)]
    assert not unknown, unknown


def there(name: str) -> bool:
    parts = name.rstrip(".").removeprefix("attsnn.").split(".")
    value = importlib.import_module("attsnn")
    for k, part in enumerate(parts):
        if not hasattr(value, part):
            try:
                importlib.import_module(f"attsnn.{'.'.join(parts[: k + 1])}")
            except ImportError:
                return False
        value = getattr(value, part)
    return True


def test_flags():
    """Every `--option` in the text is one of a program of ours, or of one that is named there."""
    others = {
        "--standalone",
        "--nproc-per-node",
        "--nnodes",
        "--rdzv-endpoint",
        "--max-restarts",
        "--no-build-isolation",
    }
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("attsnn", "bench", "train")
        for path in (ROOT / folder).rglob("*.py")
    )
    # An option of argparse, a field of a recipe, or an argument of a data set's functions.
    known = set(re.findall(r"\"(--[a-z][\w-]*)\"", source)) | {
        "--" + name.replace("_", "-") for name in re.findall(r"^\s+(\w+): [^=\n]+ = ", source, re.MULTILINE)
    }
    flags = {(page, x) for page, text in TEXTS.items() for x in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)}
    unknown = {(page, x) for page, x in flags if x not in known | others}
    assert not unknown, unknown


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
    named = {name for text in TEXTS.values() for name in re.findall(r"\bATTSNN_[A-Z_]+", text)}
    assert named - listed <= MACROS


MACROS = {"ATTSNN_WITH_CUDA"}  # of CMake


def test_the_package_asks_in_one_module():
    asking = {
        p.name for p in (ROOT / "attsnn").rglob("*.py") if "os.environ" in p.read_text(encoding="utf-8")
    }
    assert asking == {"environment.py", "memory.py"}
