"""What `verify` says of images: which are corrupt, and lists that stay short."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from attsnn.data.core.decode import decode
from attsnn.data.core.files import plain
from attsnn.data.core.images import EncodedSource, fetch
from attsnn.data.errors import DataFormatError

LINES = 10  # of a list in a report


def print_list(title: str, entries: Mapping[str, str]) -> None:
    """The first sentences, and how many more there are."""
    for sentence in list(entries.values())[:LINES]:
        print(f"  {title}: {plain(sentence)}")
    if len(entries) > LINES:
        print(f"  {title}: and {len(entries) - LINES:,} more")


def bad_images(source: EncodedSource, full: bool, title: str) -> Iterator[tuple[str, str]]:
    """(name, sentence) of the encoded images that are not sound; in threads: Pillow decodes without the GIL.

    One is sound if it begins and ends as a JPEG or PNG does, or else, or with `full`, if it can be decoded.
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
