"""Fetches published files over HTTPS: resumes after a break, checks size and hash, tries mirrors in turn.

A file appears under its name only when it is complete and correct; until then it is called `<name>.part`.
"""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from attsnn._files import sync, sync_folder
from attsnn.data.core.contract import File
from attsnn.data.core.files import plain
from attsnn.data.errors import DataError

BLOCK_BYTES = 1 << 18
MOST_BYTES = 1 << 36  # of a file of unknown size
RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/(?:([0-9]{1,18})|\*)")
TIMEOUT = 60  # seconds without a byte
TRIES = 5  # in a row without a byte
PAUSE = 1.0  # seconds before the second try, doubled before each further one
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What servers, proxies and connections that break raise.
BREAKS = (OSError, http.client.HTTPException)


def fetch(file: File, folder: str | os.PathLike[str]) -> Path:
    """Fetches `file` into `folder`, unless it is there and correct; returns its path.

    Raises DataError, which names every mirror and what went wrong with it. What was fetched so far stays, and
    the next call continues there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.exists():
        if (wrong := fault(file, path)) is None:
            print(f"{plain(path)}: is there already")
            return path
        raise DataError(f"{plain(path)}: {wrong}; remove it to fetch it again")
    if part.is_dir():
        raise DataError(f"{plain(part)}: is a folder; remove it")
    failed = []
    for url in file.urls:
        try:
            _fetch_right(url, part, file)
        except (ValueError, *BREAKS) as error:  # ValueError: a redirect to no valid address
            failed.append(f"{url}: {error}")
            continue
        os.replace(part, path)
        sync_folder(folder)
        return path
    raise DataError(f"{plain(path)}: cannot be fetched. {'; '.join(failed)}")


def _fetch_right(url: str, part: Path, file: File) -> None:
    """Fetches `part`. If what it began with belongs to another file, fetches it once more from the start."""
    began = part.exists()
    for again in (began, False):
        _fetch_from(url, part, file)
        if (wrong := fault(file, part)) is None:
            return
        part.unlink()
        if not again:
            raise DataError(f"{wrong}; it was removed")


def fault(file: File, path: Path) -> str | None:
    """How the file at `path` differs from the published one, or None."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"found {size:,} bytes; published are {file.size:,}"
    name, wanted = ("sha256", file.sha256) if file.sha256 else ("md5", file.md5)
    digest = hashlib.new(name, usedforsecurity=False)
    with open(path, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return (
        None
        if digest.hexdigest() == wanted
        else f"found the {name} {digest.hexdigest()}; published is {wanted}"
    )


def _fetch_from(url: str, part: Path, file: File) -> None:
    """Appends to `part` until the server says that it is whole."""
    _check(url)
    tries = 0
    said: Exception | None = None
    with tqdm(total=file.size, unit="B", unit_scale=True, desc=file.name, disable=None) as progress:
        while True:
            before = part.stat().st_size if part.exists() else 0
            progress.n = before
            try:
                return _append(url, part, before, file, progress)
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):  # asking again will not help
                    raise DataError(f"the server says {error.code} {error.reason}") from None
                said = error
            except BREAKS as error:
                said = error
            got = part.exists() and part.stat().st_size > before
            tries = 0 if got else tries + 1
            if tries >= TRIES:
                raise DataError(f"broken off after {before:,} bytes, {TRIES} times in a row: {said}")
            time.sleep(0 if got else PAUSE * 2 ** (tries - 1))


def _append(url: str, part: Path, start: int, file: File, progress: "tqdm[NoReturn]") -> None:
    headers = {"User-Agent": "Wget/1.21 (attsnn)", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | ({"Range": f"bytes={start}-"} if start else {}))
    try:
        answer = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left: the file is complete, or another one
            error.close()
            return
        raise
    with answer:
        first, whole = _extent(answer, start)
        if first != start:  # the server starts from the beginning, or elsewhere
            if first:
                raise DataError(f"the server sends from byte {first}, asked for {start}")
            part.unlink(missing_ok=True)
            progress.n = 0
        if (
            whole is not None and file.size is not None and whole < file.size
        ):  # perhaps another page: nothing of it is kept
            raise DataError(f"the server has {whole:,} bytes; published are {file.size:,}")
        most = file.size or whole or MOST_BYTES
        progress.total = progress.total or whole
        with open(part, "ab") as target:
            while target.tell() < most and (block := answer.read1(min(BLOCK_BYTES, most - target.tell()))):
                target.write(block)
                progress.update(len(block))
            target.flush()
            sync(target.fileno())
            got = target.tell()
    if got < (file.size or whole or 0):
        raise ConnectionError(f"ended after {got:,} of {file.size or whole:,} bytes")


def _extent(answer: http.client.HTTPResponse, asked: int) -> tuple[int, int | None]:
    """(The byte at which an answer begins, the size of the whole file if the answer states it.)"""
    length = answer.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    if answer.status != 206:
        return 0, size
    if match := RANGE.match(answer.headers.get("Content-Range", "")):
        return int(match[1]), int(match[2]) if match[2] else None
    return asked, None if size is None else asked + size


class _OnlyHTTPS(urllib.request.HTTPRedirectHandler):
    """Refuses a redirection that leaves HTTPS."""

    def redirect_request(self, request: urllib.request.Request, *args: Any) -> urllib.request.Request | None:
        new = super().redirect_request(request, *args)
        if new is not None:
            _check(new.full_url)
        return new


def _check(url: str) -> None:
    """Raises DataError unless `url` is HTTPS. Servers on this machine may use plain HTTP."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in LOOPBACK):
        raise DataError(f"{url} is not HTTPS; nothing was fetched")


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_OnlyHTTPS())
