"""The scripts of train/ as a user types them, without a new interpreter each time."""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

TRAIN = Path(__file__).parent.parent / "train"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def shows(self, **defaults: object) -> bool:
        """Whether this help has these options with these defaults. Where a line breaks is the terminal's."""
        words = " ".join(self.out.split())
        return all(
            f"--{name.replace('_', '-')} " in words and f"(default: {default})" in words
            for name, default in defaults.items()
        )


def flags(**values: Any) -> list[str]:
    """{"save_minutes": 0} as --save-minutes 0; True as the bare flag."""
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else str(value).split())]
    return words


def fresh(name: str) -> ModuleType:
    """A script of train/ as a module of its own, and with it the job of images."""
    sys.modules.pop("images", None)
    spec = importlib.util.spec_from_file_location(f"train_{name}", TRAIN / f"{name}.py")
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def train(script: str, *words: Any, where: Path, change: Callable[[ModuleType], None] | None = None) -> Done:
    """What `python train/SCRIPT.py words` does in the directory `where`; `change` gets the job of images."""
    main = fresh(script).main
    if change:
        change(sys.modules["images"])
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with contextlib.chdir(where), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as leaving:  # tyro's
            code = leaving.code
    torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())
