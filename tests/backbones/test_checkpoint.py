"""Weight files: fetched over a bad network, checked, and never used by half."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bsdkit.backbones.weights import WeightFile, fetch, read_state
from bsdkit.errors import BackboneUnavailable

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Sends CONTENT, but hangs up after `budget` bytes of each answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.budgets: list[int] = []
        self.can_resume = True
        self.version = '"one"'
        self.says_length = True
        self.seconds_a_block = 0.0
        self.content = CONTENT
        self.ranges: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not self.server.can_resume or self.headers.get("If-Range", "") not in (
            "", self.server.version,
        ):  # fmt: skip
            start = 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(body)))
        if self.server.version:
            self.send_header("ETag", self.server.version)
        self.end_headers()
        budget = self.server.budgets.pop(0) if self.server.budgets else len(body)
        for place in range(0, budget, 1 << 17):
            self.wfile.write(body[place : min(budget, place + (1 << 17))])
            time.sleep(self.server.seconds_a_block)
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("BSDKIT_WEIGHTS", str(tmp_path / "weights"))
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def weights(server: Server, sha256: str = DIGEST) -> WeightFile:
    return WeightFile("w.bin", f"http://127.0.0.1:{server.server_port}/w.bin", sha256)


def test_an_interrupted_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.budgets = [400_000, 300_000]
    seen: list[tuple[int, int]] = []
    path = fetch(weights(server), lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "weights/w.bin" and path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-", "bytes=700000-"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(weights(server)) == path and len(server.ranges) == 3  # it is there now


def test_a_server_that_cannot_resume_starts_again(server: Server) -> None:
    server.can_resume, server.budgets = False, [400_000]
    assert fetch(weights(server)).read_bytes() == CONTENT


def test_a_download_that_never_ends_is_never_used(server: Server, tmp_path: Path) -> None:
    server.budgets = [1000, 1000, 1000]
    with pytest.raises(BackboneUnavailable, match=r"ended after 3000 of 1280000 bytes.*put it at"):
        fetch(weights(server))
    folder = tmp_path / "weights"
    assert not (folder / "w.bin").exists()
    assert fetch(weights(server)).read_bytes() == CONTENT  # the next run goes on from there
    assert server.ranges[-1] == "bytes=3000-"
    assert {f.name for f in folder.iterdir()} == {"w.bin", "w.bin.lock"}


def test_what_is_not_the_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(BackboneUnavailable, match="not the expected one"):
        fetch(weights(server))
    assert not list((tmp_path / "weights").glob("w.bin"))
    # a beginning of another file does not spoil the real one
    (tmp_path / "weights/w.bin.part").write_bytes(b"x" * 10)
    server.content = CONTENT
    assert fetch(weights(server)).read_bytes() == CONTENT
    with pytest.raises(BackboneUnavailable, match=r"no direct link: fetch a page and put it at"):
        fetch(WeightFile("other.pt", page="a page"))


def test_without_a_digest_only_what_is_surely_whole_is_taken(server: Server) -> None:
    # the file changed between two tries: the rest of the new one is not put behind the old
    server.budgets = [400_000, 0, 0]
    with pytest.raises(BackboneUnavailable, match="ended after"):
        fetch(weights(server, ""))
    server.version, server.content = '"two"', CONTENT[::-1]
    assert fetch(weights(server, "")).read_bytes() == CONTENT[::-1]
    server.says_length = False
    with pytest.raises(BackboneUnavailable, match="does not say how long the file is"):
        fetch(WeightFile("other.bin", weights(server).url))


def test_two_processes_that_fetch_one_file(server: Server, tmp_path: Path) -> None:
    server.seconds_a_block = 0.05
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch(weights(server, ""))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert len(results) == 3 and results[0].read_bytes() == CONTENT
    assert len(server.ranges) == 1


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a weight file ran code",))


def test_a_pickle_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Evil()}))
    (tmp_path / "page.pt").write_bytes(b"  <!DOCTYPE html><html>")
    (tmp_path / "list.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    whole = (tmp_path / "list.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zeros.pt").write_bytes(bytes(100))
    with pytest.raises(BackboneUnavailable, match="holds a .*print.* because it could run code"):
        read_state(tmp_path / "evil.pt", "the weights")
    for name in ("plain.pt", "list.pt", "cut.pt", "zeros.pt"):
        with pytest.raises(BackboneUnavailable, match=f"{name} is not the weights"):
            read_state(tmp_path / name, "the weights")
    with pytest.raises(BackboneUnavailable, match="is a web page"):
        read_state(tmp_path / "page.pt", "the weights")
    assert capsys.readouterr().out == ""
