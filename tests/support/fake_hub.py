"""As much of a Hugging Face hub as huggingface_hub needs to fetch repositories, on loopback, from folders."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pipeline.hub import _snapshot

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/(.+)")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
TOKEN = "hf_let_me_in"


@dataclass
class FakeHub:
    """Repositories by kind and name: each a list of commits, the last of which is `main`. `served` counts downloads."""

    address: str
    repos: dict[tuple[str, str], list[dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    served: Counter[str] = field(default_factory=Counter)
    asked: int = 0

    def push(self, name: str, files: dict[str, bytes], *, kind: str = "models") -> str:
        """A new commit of a repository."""
        self.repos.setdefault((kind, name), []).append(files)
        return self.commit(kind, name, len(self.repos[(kind, name)]) - 1)

    def push_folder(self, name: str, folder: Path, *, below: str = "") -> str:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.push(name, {f"{below}{path}": content for path, content in files.items()})

    def commit(self, kind: str, name: str, number: int) -> str:
        return hashlib.sha1(f"{kind} {name} {number}".encode()).hexdigest()

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision is, and its files."""
        commits = self.repos[(kind, name)]
        named = {self.commit(kind, name, number): files for number, files in enumerate(commits)}
        latest = self.commit(kind, name, len(commits) - 1)
        commit = latest if unquote(revision) in ("main", "refs/convert/parquet") else revision
        return (commit, named[commit]) if commit in named else None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path) if "/resolve/" not in self.path else self.path
        hub.asked += 1
        asked, file = API.fullmatch(path), FILE.fullmatch(path)
        named = asked or file
        assert named
        kind, name = (named[1] or "models").rstrip("/"), named[2]
        secret = name in hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if (kind, name) not in hub.repos or secret:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        revision = asked[4] if asked else file[3]
        known = hub.files(kind, name, revision)
        if known is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit, files = known
        if asked:
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            answer = {"id": name, "sha": commit, "siblings": []} if asked[3] == "revision" else tree
            return self._send(200, json.dumps(answer).encode(), {})
        content = files[unquote(file[4])]
        hub.served[unquote(file[4])] += with_body
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self._send(200, content, headers, with_body=with_body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    _Handler.hub = hub
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


FILES = "/{repo_id}/resolve/{revision}/{filename}"


@contextmanager
def led_to(hub: FakeHub, cache: Path) -> Iterator[None]:
    """huggingface_hub in this process asks this hub, and keeps what it gets in this cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + FILES)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.delenv("HF_TOKEN", raising=False)
        _snapshot.cache_clear()
        yield
        _snapshot.cache_clear()


def go_offline(patch: pytest.MonkeyPatch) -> None:
    """As a new process would be with HF_HUB_OFFLINE=1."""
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _snapshot.cache_clear()
