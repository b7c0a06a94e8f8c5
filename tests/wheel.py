"""`make test-wheel`: an installed wheel, away from the checkout, runs README's first program and trains."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import attsnn
from attsnn import _extension

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300  # seconds


def main() -> None:
    home = Path(attsnn.__file__).resolve()
    assert not home.is_relative_to(ROOT / "attsnn"), f"{home} is the checkout's, not the wheel's"
    assert _extension.obstacle("cpu") is None, _extension.obstacle("cpu")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    program = re.search(r"## A first program\n+```python\n(.*?)```", readme, re.DOTALL)[1]
    training = [str(ROOT / "train" / "dvs.py"), "samples", "--epochs", "1", "--workers", "0"]
    with tempfile.TemporaryDirectory() as folder:
        for words in (["-c", program], training):
            subprocess.run([sys.executable, *words], cwd=folder, check=True, timeout=LIMIT)
        assert (Path(folder) / "runs" / "samples" / "exit.json").is_file()
    print(f"the wheel serves: {home.parent}")


if __name__ == "__main__":
    main()
