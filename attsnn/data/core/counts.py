"""What small sets of images share once they are found: counts of their classes, and an unpacked copy."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from attsnn._files import sync
from attsnn.data.core.files import plain
from attsnn.data.core.find import Found
from attsnn.data.core.images import Arrays
from attsnn.data.core.staging import staged
from attsnn.data.errors import DataFormatError


def check_counts(
    path: str | os.PathLike,
    found: Mapping[str, Arrays],
    wanted: Mapping[str, Sequence[int]],
    name: str,
    where: str,
    others: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> None:
    """Prints what each split holds; DataFormatError where it is not as many of each class as were published.

    `others` are the counts of sets with which this one is mixed up, by name.
    """
    faults = []
    for split, images in found.items():
        counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
        print(f"{split}: {sum(counts):,} images, {sum(c > 0 for c in counts)} classes")
        if counts == list(wanted[split]):
            continue
        mixed = [other for other, theirs in (others or {}).items() if counts == list(theirs[split])]
        if mixed:
            faults.append(f"{split} is that of {mixed[0]}, not of {name}")
            continue
        label = next(k for k, (c, w) in enumerate(zip(counts, wanted[split], strict=True)) if c != w)
        faults.append(
            f"{split} has {counts[label]} images of class {images.classes[label]}, published are "
            f"{wanted[split][label]}"
        )
    if faults:
        raise DataFormatError(f"{'; '.join(faults)}; {where}", path=plain(path))


def unpack(found: Found, out: str | os.PathLike, folder: str) -> Path:
    """Writes the files that were found to OUT/`folder`, under their own names and unpacked."""
    with staged(out) as partial:
        (partial / folder).mkdir(parents=True)
        for name in found.layout.names:
            its = found.read(name)
            with open(partial / folder / its.name, "xb") as file:
                file.write(its.data)
                file.flush()
                sync(file.fileno())
    return Path(out)
