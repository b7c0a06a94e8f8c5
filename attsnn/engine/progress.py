"""The progress of an epoch: a tqdm bar on a terminal, a line now and then if the output is piped."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts samples, and shows their rate, the time left, the running metrics, and the share of time spent
    waiting for data. `quiet` prints nothing, for all processes but the first.
    """

    def __init__(self, title: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._quiet = quiet
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit=" samples",
            leave=False,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, samples: int, metrics: Mapping[str, float], waited: float = 0.0) -> None:
        """Enters a step of `samples` samples. `metrics` are the means of the epoch so far, `waited` the
        seconds that it has waited for data.
        """
        self._done += samples
        if self._quiet:
            return
        waiting = waited / max(time.monotonic() - self._began, 1e-9)
        shown = {name: f"{value:.4f}" for name, value in metrics.items()} | {"data wait": f"{waiting:.0%}"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(samples)
        now = time.monotonic()
        if self._bar.disable and self._done < self._total and now - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = now
            rate = (self._done - self._first) / (now - self._began)
            left = duration((self._total - self._done) / rate)
            means = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(
                f"{self._title}  {self._done}/{self._total}  {rate:.0f} samples/s  {left} left  {means}",
                flush=True,
            )


def duration(seconds: float) -> str:
    """A time in words: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
