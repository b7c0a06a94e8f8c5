"""The rooms of attsnn.data: former names, and the table of data sets."""

import importlib
import subprocess
import sys

import pytest

import attsnn.data
from attsnn.data import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_former_modules_are_those_of_today(name):
    sys.modules.pop(f"attsnn.data.{name}", None)
    with pytest.warns(DeprecationWarning, match=rf"attsnn\.data\.{name} .* use attsnn\.data\.{MOVED[name]}"):
        former = importlib.import_module(f"attsnn.data.{name}")
    assert former is importlib.import_module(f"attsnn.data.{MOVED[name]}")
    assert former.__spec__.name == former.__name__ == f"attsnn.data.{MOVED[name]}"
    delattr(attsnn.data, name)
    with pytest.warns(DeprecationWarning):
        assert getattr(attsnn.data, name) is former


def test_the_warning_names_the_line_that_imports(tmp_path):
    script = tmp_path / "script.py"
    lines = "from attsnn.data.events import frames", "from attsnn.data import samples"
    script.write_text("\n".join(lines))
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert all(f"{script}:{k}: DeprecationWarning: attsnn.data." in shown.stderr for k in (1, 2))
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True)
    assert done.returncode == 1 and f'script.py", line 1, in <module>\n    {lines[0]}' in done.stderr
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("attsnn.data.elsewhere")
