"""A hub on 127.0.0.1: the few endpoints that headers and downloads need, and a log of requests."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "someone/tiny-moe"


class Hub(ThreadingHTTPServer):
    """Serves the files of `root` as MODEL at COMMIT; `cut` shortens what is sent of a file."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.log: list[tuple[str, str, str, int]] = []  # method, path, range, bytes sent
        self.cut: dict[str, int] = {}
        self.tokens: list[str] = []  # the credentials of every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, name: str) -> int:
        """Bytes of the file `name` sent so far."""
        return sum(count for _, path, _, count in self.log if path.endswith(f"/{name}"))


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.tokens.append(self.headers.get("Authorization", ""))
        if path in (f"/api/models/{MODEL}", *self._revisions()):
            self._send(path, json.dumps(self._info()).encode(), body)
            return
        for revision in ("main", COMMIT):
            prefix = f"/{MODEL}/resolve/{revision}/"
            file = self.server.root / path.removeprefix(prefix)
            if path.startswith(prefix) and file.is_file():
                self._send(path, file.read_bytes(), body)
                return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound" if "/api/" in path else "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.log.append((self.command, path, "", 0))

    def _revisions(self) -> list[str]:
        return [f"/api/models/{MODEL}/revision/{revision}" for revision in ("main", COMMIT)]

    def _info(self) -> dict[str, object]:
        files = sorted(file for file in self.server.root.iterdir() if file.is_file())
        siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in files]
        return {"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings,
                "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def _send(self, path: str, content: bytes, body: bool) -> None:
        asked = self.headers.get("Range", "")
        total, start = len(content), 0
        etag = hashlib.sha1(content).hexdigest()
        content = content[: self.server.cut.get(path.rsplit("/", 1)[-1], total)]
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first)
            content = content[start : int(last) + 1 if last else None]
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        self.end_headers()
        if body:
            self.wfile.write(content)
        self.server.log.append((self.command, path, asked, len(content) if body else 0))

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """A hub with the files of `root` for as long as the context lasts."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
