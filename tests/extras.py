"""Each extra alone, in an environment of its own with a wheel and torch: python tests/extras.py [EXTRA ...]

`make wheel` first. Downloads what the extras ask for, so that no CI runs it. The environments lie below
build/extras and borrow torch, and nothing else, from this Python's.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = "--epochs 1 --limit-batches 1 --workers 0 --batch 4 --precision fp32"
SMALL = "--synthetic 20 --attention None --steps 4 --clips 1 --channels 4 4 4 --hidden 8"
EVENTS = f"train/dvs.py gesture {SMALL} {TRAIN}"
IMAGES = f"train/imagenet.py --synthetic 20 --size 32 --width 0.125 --schedule-every step {TRAIN}"

# What an extra is for (docs say so): a command of the checkout, or a program, and what it leaves.
USES: dict[str, tuple[str, str | None]] = {
    "plot": (EVENTS, "runs/*/curves.png"),
    "tb": (EVENTS, "runs/**/events.out.tfevents*"),
    "vision": (IMAGES, "runs/*/metrics.jsonl"),
    "imagenet": (IMAGES + " --augment randaugment", "runs/*/metrics.jsonl"),
    "mat": (
        "import numpy as np\n"
        "from attsnn.data.core.events import Events\n"
        "from attsnn.data.formats import mat\n"
        "from attsnn.data.synthetic.writers import write_mat\n"
        "t, x, p = np.arange(5), np.arange(5, dtype=np.int16), (np.arange(5) % 2).astype(np.uint8)\n"
        "write_mat('a.mat', Events(t, x, x, p))\n"
        "assert len(mat.decode(np.fromfile('a.mat', np.uint8)).events.t) == 5\n",
        "a.mat",
    ),
    "nir": (
        "from attsnn import models\n"
        "from attsnn.interop import nir\n"
        "net = models.create('ma_snn_dvs_gesture', attention=None, width=0.25, steps=4).eval()\n"
        "nir.write(net, 'net.nir')\n"
        "nir.read('net.nir')\n",
        "net.nir",
    ),
    "fid": (
        "from attsnn.metrics import clean_inception\n"
        "try:\n"
        "    clean_inception('nowhere.pt')\n"
        "except FileNotFoundError as error:  # the network is fetched by hand; all else is there\n"
        "    print(error)\n",
        None,
    ),
    "docs": ("docs/conf.py site", "site/html/index.html"),
    "dev": ("-m pytest -q -p no:cacheprovider tests/test_architecture.py tests/test_losses.py", None),
}


def borrow(place: Path) -> None:
    """torch alone of this Python's packages."""
    site, lent = Path(sysconfig.get_paths()["purelib"]), place / "lent"
    lent.mkdir()
    for name in ("torch", "torchgen", "functorch", *(p.name for p in site.glob("torch-*.dist-info"))):
        (lent / name).symlink_to(site / name)
    (*_, own) = place.glob("lib/python*/site-packages")
    (own / "lent.pth").write_text(str(lent))


def check(extra: str, wheel: Path) -> str:
    place, python = ROOT / "build" / "extras" / extra, ROOT / "build" / "extras" / extra / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    borrow(place)
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch")]
    (place / "pins.txt").write_text("\n".join(pins))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", place / "pins.txt"]
    subprocess.run([*pip, f"{wheel}[{extra}]"], check=True)
    use, leaves = USES[extra]
    words = use.split() if "\n" not in use else ["-c", use]
    if words[0].endswith(".py"):
        words[0] = str(ROOT / words[0])
    words = [str(ROOT / word) if word.startswith("tests/") else word for word in words]
    shim = {"PYTHONPATH": str(ROOT / "tests" / "shim")}  # torchvision of PyPI beside a torch for CPUs
    done = subprocess.run(
        [python, *words], cwd=place, env={**os.environ, **shim}, capture_output=True, text=True
    )
    if done.returncode:
        return f"fails\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    if leaves and not any(place.glob(leaves)):
        return f"leaves no {leaves}"
    return "does what it is for"


def main() -> int:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(
        r"^(\w+) = \[", text.partition("[project.optional-dependencies]")[2].partition("[tool")[0], re.M
    )
    assert set(extras) == set(USES), set(extras) ^ set(USES)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    results = {extra: check(extra, wheel) for extra in sys.argv[1:] or extras}
    for extra, result in results.items():
        print(f"{extra:10} {result}")
    return int(any(result != "does what it is for" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
