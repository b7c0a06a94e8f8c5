"""How figures look and are written: one style, colours that the colour-blind can tell apart, PNG or SVG by
the file's name. Needs matplotlib (the extra `plot`); without it, one sentence is printed.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from attsnn._files import replace_file

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
    "svg.hashsalt": "attsnn",  # equal numbers give equal bytes
}
TRAIN, HELD, AVERAGED = "#8a8a8a", "#1f5fa8", "#c2570c"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # Okabe and Ito (2008)
HEAT = "viridis"
SLANTED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
FORMATS = (".png", ".svg")


@functools.cache
def _matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("No pictures: matplotlib is not installed (pip install matplotlib).")
        return False
    return True


def picture(draw: Callable[..., Any]) -> Callable[..., list[Path]]:
    """Turns draw(figure, ...) into f(path, ..., size=inches), which writes a PNG or SVG and
    returns [path] or [].
    """

    @functools.wraps(draw)
    def write(path: Path, *args: Any, size: tuple[float, float], **kwargs: Any) -> list[Path]:
        path = Path(path)
        if path.suffix not in FORMATS:
            raise ValueError(f"path must end in {' or '.join(FORMATS)}, got {path.name!r}")
        if not _matplotlib():
            return []
        replace_file(path, drawn(draw, *args, size=size, form=path.suffix[1:], **kwargs))
        return [path]

    return write


def drawn(
    draw: Callable[..., Any], *args: Any, size: tuple[float, float], form: str = "svg", **kwargs: Any
) -> bytes:
    """The bytes of a picture's file."""
    with _figure(size) as figure:
        draw(figure, *args, **kwargs)
        file = io.BytesIO()
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def colour(number: int) -> str:
    """The colour of the network or layer of that number."""
    return COLOURS[number % len(COLOURS)]


def colours(names: Iterable[str], order: Sequence[str] | None = None) -> dict[str, str]:
    """The colour of each name, by its place in `order`; a page passes the same order to every figure.
    Default: the order of the names.
    """
    places = {name: i for i, name in enumerate(order or names)}
    return {name: colour(places.get(name, len(places))) for name in names}


@contextlib.contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Any]:
    """A figure drawn by Agg, whatever display or backend the user has."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, STYLE)):  # newer versions type the keys one by one
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
