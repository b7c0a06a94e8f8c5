"""What `verify` needs for images: finding the corrupt ones, and printing lists that stay short."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from attsnn.data.core.decode import decode
from attsnn.data.core.files import plain
from attsnn.data.core.images import EncodedSource, fetch
from attsnn.data.errors import DataFormatError

LINES = 10  # the most of a list that are printed


def print_list(title: str, entries: Mapping[str, str]) -> None:
    """Prints the first sentences of a list, and how many more there are."""
    for sentence in list(entries.values())[:LINES]:
        print(f"  {title}: {plain(sentence)}")
    if len(entries) > LINES:
        print(f"  {title}: and {len(entries) - LINES:,} more")


def bad_images(source: EncodedSource, full: bool, title: str) -> Iterator[tuple[str, str]]:
    """Yields (name, sentence) of each encoded image that is not sound.

    An image is sound if it begins and ends as a JPEG or PNG does. Otherwise, or with `full`, it is sound if
    it can be decoded. This runs in threads, because Pillow decodes without the GIL.
    """
    number, step = len(source.labels), 64

    def check(start: int) -> list[tuple[str, str]]:
        stop = min(start + step, number)
        return [found for i in range(start, stop) if (found := _check(source, i, full))]

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=number, desc=title, disable=None) as progress:
        for start, found in zip(range(0, number, step), pool.map(check, range(0, number, step)), strict=True):
            yield from found
            progress.update(min(step, number - start))


def _check(source: EncodedSource, index: int, full: bool) -> tuple[str, str] | None:
    where = source.where(index)
    try:
        data = fetch(source, index)
        jpeg = data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")
        png = data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
        if full or not (jpeg or png):
            decode(data, where)
    except DataFormatError as error:
        return where, str(error)
    return None
