"""Small sets of images, once their files are found: checks of their class counts, and an unpacked copy."""

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from attsnn._files import write_file
from attsnn.data.core.find import Found
from attsnn.data.core.images import Arrays
from attsnn.data.core.staging import staged
from attsnn.data.errors import DataFormatError


def check_counts(
    path: str | os.PathLike[str], found: Mapping[str, Arrays], wanted: Mapping[str, Sequence[int]], where: str
) -> None:
    """Prints what each split holds. Raises DataFormatError if a class has not as many images as published."""
    faults = []
    for split, images in found.items():
        counts = _counts(images)
        print(f"{split}: {sum(counts):,} images, {sum(c > 0 for c in counts)} classes")
        wrong = [k for k, (c, w) in enumerate(zip(counts, wanted[split], strict=True)) if c != w]
        if wrong:
            label = wrong[0]
            faults.append(
                f"{split} has {counts[label]:,} images of class {images.classes[label]}, published are "
                f"{wanted[split][label]:,}"
            )
    if faults:
        raise DataFormatError(f"{'; '.join(faults)}; {where}", path=path)


def mixed_up(
    path: str | os.PathLike[str],
    found: Mapping[str, Arrays],
    name: str,
    where: str,
    known: Mapping[str, Mapping[str, Sequence[int]]],
) -> None:
    """Raises DataFormatError if a split has exactly the counts of another of the `known` sets."""
    theirs = {
        split: [other for other in known if other != name and _counts(images) == list(known[other][split])]
        for split, images in found.items()
    }
    faults = [f"{split} is that of {others[0]}, not of {name}" for split, others in theirs.items() if others]
    if faults:
        raise DataFormatError(f"{'; '.join(faults)}; {where}", path=path)


def _counts(images: Arrays) -> list[int]:
    counts: list[int] = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    return counts


def unpack(found: Found, out: str | os.PathLike[str], folder: str) -> Path:
    """Writes the files that were found to OUT/`folder`, unpacked, under the names of the layout."""
    with staged(out) as partial:
        (partial / folder).mkdir(parents=True)
        for name in found.layout.names:
            content = found.read(name).data.tobytes()
            if content.startswith(b"\x1f\x8b"):  # it has already been read as a whole
                content = gzip.decompress(content)
            write_file(partial / folder / name, content)
    return Path(out)
