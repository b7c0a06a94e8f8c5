"""Downloads, from a server of this machine that breaks off, lies and sends other files."""

import hashlib
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from attsnn.data import DATASETS, DataError
from attsnn.data.__main__ import main
from attsnn.data.core import download
from attsnn.data.core.contract import DataSet, File

CONTENT = np.random.default_rng(0).bytes(700_000)
MD5, SHA = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Behaves as the path that is asked for says; `asked` are (path, Range) of the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        how, wanted = self.path[1:], self.headers["Range"]
        self.server.asked.append((how, wanted))
        times = sum(path == how for path, _ in self.server.asked)
        if how.isdecimal() or (how == "busy" and times < 3):
            return self.send_error(int(how) if how.isdecimal() else 503)
        if how == "elsewhere":
            return self.redirect("http://example.invalid/file")
        if how == "moved":
            return self.redirect("/sound")
        if how == "no-address":
            return self.redirect("http://[::bad")
        start = int(wanted[6:-1]) if wanted and how != "no-ranges" else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        start = 7 if how == "another-place" and start else start
        whole = {"another": CONTENT[::-1], "longer": CONTENT + b"more", "page": b"<html>login</html>"}.get(
            how, CONTENT
        )
        body = whole[start:]
        claimed = {"claims-more": len(body) + 9, "claims-fewer": len(body) - 9}.get(how, len(body))
        sent = (
            body[:200_000]
            if how in ("breaks", "no-ranges") and times < 5
            else b""
            if how == "silent"
            else body
        )
        self.send_response(206 if wanted and how != "no-ranges" else 200)
        if how != "says-no-length":
            self.send_header("Content-Length", str(claimed))
        if wanted and how != "no-ranges":
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        self.wfile.write(sent[:200_000] if how == "resets" else sent)
        if how == "resets":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def redirect(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def file(*urls: str, size: int | None = len(CONTENT), **hashed) -> File:
    return File("a.bin", size, urls=urls, **(hashed or {"sha256": SHA}))


@pytest.mark.parametrize("how", ["sound", "moved", "busy", "says-no-length", "no-ranges"])
@pytest.mark.parametrize("known", [{"sha256": SHA}, {"md5": MD5, "size": None}])
def test_a_file_comes_whole(how, known, server, tmp_path):
    path = download.fetch(file(server.url(how), **known), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a.bin" and path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    asked = len(server.asked)
    assert (
        download.fetch(file(server.url(how)), path.parent) == path and len(server.asked) == asked
    )  # is there


def test_a_break_is_resumed_where_it_broke(server, tmp_path):
    assert download.fetch(file(server.url("breaks")), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=200000-", "bytes=400000-", "bytes=600000-"]


def test_a_later_call_goes_on(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:650_000])
    assert download.fetch(file(server.url("sound")), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("sound", "bytes=650000-")]
    (tmp_path / "a.bin").rename(tmp_path / "a.bin.part")  # whole, but not renamed yet
    assert download.fetch(file(server.url("sound")), tmp_path).read_bytes() == CONTENT


REFUSED = {  # path: words
    "404": "the server says 404 Not Found",
    "another": "found the sha256 .*; it was removed",
    "page": "the server has 18 bytes; published are 700,000",
    "claims-fewer": "the server has 699,991 bytes; published are 700,000",
    "another-place": "the server sends from byte 7, asked for 650000",
    "no-address": "Invalid IPv6 URL|not HTTPS",
    "elsewhere": "http://example.invalid/file is not HTTPS; nothing was fetched",
    "silent": "broken off after 0 bytes, 5 times in a row",
    "503": "broken off after 0 bytes, 5 times in a row: HTTP Error 503",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_a_server_does_wrong_is_said(how, server, tmp_path):
    if how == "another-place":
        (tmp_path / "a.bin.part").write_bytes(CONTENT[:650_000])
    with pytest.raises(DataError, match=REFUSED[how]) as caught:
        download.fetch(file(server.url(how)), tmp_path)
    assert server.url(how) in str(caught.value) and not (tmp_path / "a.bin").exists()
    part = tmp_path / "a.bin.part"
    assert not part.exists() or CONTENT.startswith(part.read_bytes())  # nothing wrong is built upon
    assert download.fetch(file(server.url(how), server.url("sound")), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["claims-more", "longer", "resets"])
def test_size_and_hash_decide_not_what_a_server_says(how, server, tmp_path):
    """As many bytes as were published are read, those of a connection that breaks, too."""
    assert download.fetch(file(server.url(how)), tmp_path).read_bytes() == CONTENT


def test_a_page_in_place_of_a_file_is_not_built_upon(server, tmp_path):
    for known in ({}, {"size": None}):
        found = download.fetch(file(server.url("page"), server.url("sound"), **known), tmp_path)
        assert found.read_bytes() == CONTENT
        found.unlink()


def test_what_another_file_left_is_not_built_upon(server, tmp_path):
    """The hash is wrong once; then the file is fetched from its start."""
    (tmp_path / "a.bin.part").write_bytes(b"x" * 650_000)
    assert download.fetch(file(server.url("sound")), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=650000-", None]
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin.part").mkdir()
    with pytest.raises(DataError, match="a.bin.part: is a folder; remove it"):
        download.fetch(file(server.url("sound")), tmp_path)
    (tmp_path / "a.bin.part").rmdir()
    assert download.fetch(file(server.url("sound")), tmp_path).read_bytes() == CONTENT


def test_a_wrong_file_that_is_there_is_not_overwritten(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.bin: found 4 bytes; published are 700,000; remove it"):
        download.fetch(file(server.url("sound")), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and not server.asked


@pytest.mark.parametrize("url", ["http://example.invalid/a", "ftp://example.invalid/a", "file:///etc/passwd"])
def test_nothing_but_https(url, tmp_path):
    with pytest.raises(DataError, match="is not HTTPS; nothing was fetched"):
        download.fetch(file(url), tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_command_line(server, tmp_path, monkeypatch, capsys):
    known = DATASETS["mnist"]
    files = (
        File("a.bin", sha256=SHA, urls=(server.url("404"), server.url("breaks"))),
        File("by hand", md5=MD5),
    )
    monkeypatch.setitem(DATASETS, "mnist", DataSet(**{**vars(known), "files": files}))
    assert main(["download", "mnist", str(tmp_path / "dir")]) == 0
    assert f"{tmp_path / 'dir'}: a.bin\n" in capsys.readouterr().out
    assert (tmp_path / "dir" / "a.bin").read_bytes() == CONTENT
    (tmp_path / "dir" / "a.bin").write_bytes(b"")
    assert main(["download", "mnist", str(tmp_path / "dir")]) == 3
    assert "remove it to fetch it again" in capsys.readouterr().err
    assert main(["download", "celeba", str(tmp_path)]) == 3
    assert "celeba: no program may or can fetch it; by hand, from https://mmlab" in capsys.readouterr().err
