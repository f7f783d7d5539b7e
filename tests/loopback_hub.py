"""A dataset hub on this machine, for the real `datasets` client: serves a folder of repositories over HTTP.

The folder holds `<owner>/<name>/` with the files of each repository, its README.md naming the configurations as on the
hub. Every repository has one commit, on the branch `main`. `Hub.faults` says how it misbehaves.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

COMMIT = hashlib.sha1(b"the one commit").hexdigest()

_REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("info", re.compile(rf"/api/datasets/{_REPOSITORY}(/revision/{_REVISION})?")),
    ("tree", re.compile(rf"/api/datasets/{_REPOSITORY}/tree/{_REVISION}/?(?P<path>.*)")),
    ("paths_info", re.compile(rf"/api/datasets/{_REPOSITORY}/paths-info/{_REVISION}")),
    ("file", re.compile(rf"/datasets/{_REPOSITORY}/resolve/{_REVISION}/(?P<path>.+)")),
]


@dataclass
class Faults:
    """How a hub misbehaves; every N counts GETs of data files, from 1, and 0 is never.

    Attributes:
        status_every: Every Nth answers `status`, with `retry_after` seconds as its Retry-After if that is set.
        status_after: All behind the Nth answer `status`.
        cut_every: Every Nth sends half of what it promised and closes the connection.
        short_every: Every Nth sends half of what was asked for and promises no more than that.
        reset_every: Every Nth has its connection reset before an answer.
        hang_every: Every Nth waits `hang_seconds` before it answers.
    """

    status_every: int = 0
    status_after: int = 0
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after: int | None = None
    cut_every: int = 0
    short_every: int = 0
    reset_every: int = 0
    hang_every: int = 0
    hang_seconds: float = 0.0


class Hub(ThreadingHTTPServer):
    """The server: bound at once, so that its address is known, and serving once `serve_forever` runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root: Path | None = None  # nothing is found before it is set
        self._lock = threading.Lock()
        self.behave()

    def behave(self) -> None:
        """Ends every fault and counts from 0."""
        self.faults = Faults()
        self.outage: HTTPStatus | None = None  # data files answer this instead of their bytes
        self.gated: set[str] = set()  # repositories that are not for everybody
        self._down_until = 0.0
        self.n_requests = 0
        self.n_data_requests = 0
        self.n_data_bytes = 0

    def go_down(self, seconds: float) -> None:
        """Resets every connection for so long."""
        self._down_until = time.monotonic() + seconds

    @property
    def is_down(self) -> bool:
        """Whether `go_down` still holds."""
        return time.monotonic() < self._down_until

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, requests: int = 0, data_requests: int = 0, data_bytes: int = 0) -> int:
        """Adds to the counters and gives the number of this data request."""
        with self._lock:
            self.n_requests += requests
            self.n_data_requests += data_requests
            self.n_data_bytes += data_bytes
            return self.n_data_requests

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it holds each answer for 40 ms
    server: Hub

    def do_GET(self) -> None:
        self.server.count(requests=1)
        if self.server.is_down:
            return self._reset()
        asked = urlsplit(self.path)
        for name, pattern in _ROUTES:
            if found := pattern.fullmatch(unquote(asked.path)):
                return self._answer(name, found, parse_qs(asked.query))
        self._refuse("EntryNotFound")

    do_HEAD = do_POST = do_GET

    def _answer(self, name: str, found: re.Match[str], query: dict[str, list[str]]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        root = self.server.root / found["repository"] if self.server.root else None
        if root is None or not root.is_dir():
            return self._refuse("RepoNotFound")
        if found["repository"] in self.server.gated:
            return self._refuse("GatedRepo", HTTPStatus.FORBIDDEN)
        if found["revision"] not in (None, "main", COMMIT):
            return self._refuse("RevisionNotFound")
        if name == "info":
            return self._send_json(_info(root, found["repository"]))
        if name == "paths_info":
            return self._send_json([_entry(root, root / path) for path in _paths(body) if (root / path).exists()])
        path = root / found["path"]
        if name == "tree" and path.is_dir():
            is_recursive = query.get("recursive", [""])[0].lower() == "true"
            return self._send_json(
                [_entry(root, p) for p in sorted(path.rglob("*") if is_recursive else path.iterdir())]
            )
        if name == "file" and path.is_file():
            return self._send_file(path)
        self._refuse("EntryNotFound")

    def _send_file(self, path: Path) -> None:
        data = path.read_bytes()
        status, body = HTTPStatus.OK, data
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            status, body = HTTPStatus.PARTIAL_CONTENT, data[first : last + 1]
        if path.name == "README.md" or self.command != "GET":
            return self._send(status, body, headers)
        self._send_data(status, body, headers)

    def _send_data(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        faults, number = self.server.faults, self.server.count(data_requests=1)

        def is_due(every: int) -> bool:
            return every > 0 and number % every == 0

        if self.server.outage:
            return self._send(self.server.outage, b"")
        if is_due(faults.reset_every):
            return self._reset()
        if is_due(faults.status_every) or 0 < faults.status_after < number:
            wait = {} if faults.retry_after is None else {"Retry-After": str(faults.retry_after)}
            return self._send(faults.status, b"", wait)
        if is_due(faults.hang_every):
            time.sleep(faults.hang_seconds)
        promised = len(body)
        if is_due(faults.cut_every) or is_due(faults.short_every):
            body = body[: len(body) // 2]
        if is_due(faults.short_every):
            promised = len(body)
        self.server.count(data_bytes=len(body))
        self._send(status, body, {**headers, "Content-Length": str(promised)})
        self.close_connection = self.close_connection or promised > len(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send_json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str, status: HTTPStatus = HTTPStatus.NOT_FOUND) -> None:
        self._send(status, b"", {"X-Error-Code": code})

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _info(root: Path, repository: str) -> dict[str, Any]:
    files = [{"rfilename": path.relative_to(root).as_posix()} for path in sorted(root.rglob("*")) if path.is_file()]
    _, card, _ = (root / "README.md").read_text().split("---", 2)
    return {
        "id": repository,
        "sha": COMMIT,
        "siblings": files,
        "cardData": yaml.safe_load(card),
        "private": False,
        "tags": [],
    }


def _entry(root: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(root).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": oid, "size": 0}
    return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}


def _paths(body: bytes) -> list[str]:
    text = body.decode()
    if text.startswith("{"):
        return list(json.loads(text)["paths"])
    return parse_qs(text).get("paths", [])
