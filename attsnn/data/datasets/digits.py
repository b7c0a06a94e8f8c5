"""1,797 real handwritten digits that come with the package: the test set of UCI's "Optical Recognition of
Handwritten Digits" (E. Alpaydin, C. Kaynak, CC BY 4.0; digits.csv.gz, see digits.md).
"""

import gzip
from functools import cache
from pathlib import Path

import numpy as np

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The embedded digits: grey values 0..16 `[1797, 8, 8]` and labels 0..9 `[1797]`, uint8."""
    with gzip.open(Path(__file__).with_name("digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8, comments="#")
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]
