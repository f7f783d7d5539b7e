"""A dataset hub on this machine, for the real `datasets` client: serves a folder of repositories over HTTP.

The folder holds `<owner>/<name>/` with the files of each repository, its README.md naming the configurations as on the
hub. Every repository has one commit, on the branch `main`. `Hub.outage` makes data requests fail.
"""

import hashlib
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = hashlib.sha1(b"the one commit").hexdigest()

_REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("info", re.compile(rf"/api/datasets/{_REPOSITORY}(/revision/{_REVISION})?")),
    ("tree", re.compile(rf"/api/datasets/{_REPOSITORY}/tree/{_REVISION}/?(?P<path>.*)")),
    ("paths_info", re.compile(rf"/api/datasets/{_REPOSITORY}/paths-info/{_REVISION}")),
    ("file", re.compile(rf"/datasets/{_REPOSITORY}/resolve/{_REVISION}/(?P<path>.+)")),
]


class Hub(ThreadingHTTPServer):
    """The server: bound at once, so that its address is known, and serving once `serve_forever` runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root: Path | None = None  # nothing is found before it is set
        self.outage: HTTPStatus | None = None  # data files answer this instead of their bytes
        self.n_data_requests = 0

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
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
        if path.suffix == ".parquet" and self.command == "GET":
            self.server.n_data_requests += 1
            if self.server.outage:
                return self._send(self.server.outage, b"")
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(HTTPStatus.PARTIAL_CONTENT, data[first : last + 1], headers)
        self._send(HTTPStatus.OK, data, headers)

    def _send_json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": code})

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
    licence = re.search(r"^license: (.+)$", (root / "README.md").read_text(), re.M)
    card = {"license": licence[1]} if licence else None
    return {"id": repository, "sha": COMMIT, "siblings": files, "cardData": card, "private": False, "tags": []}


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
