"""A server that answers as the hub does to those who list and download the files of a model."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves the folders in ``root``, named owner/model, at one commit."""

    root: Path

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.send_listing("/".join(parts[2:4]), parts[4:5] == ["tree"])
        elif parts[2:3] == ["resolve"]:
            self.send_file(self.root / parts[0] / parts[1] / "/".join(parts[4:]), with_body)
        else:
            self.send_error(404)

    def send_listing(self, name: str, as_tree: bool) -> None:
        folder = self.root / name
        if not folder.is_dir():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        tree = [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": hash_of(f)}
            for f in files
        ]
        siblings = [{"rfilename": entry["path"]} for entry in tree]
        self.send_body(json.dumps(tree if as_tree else {"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def send_file(self, path: Path, with_body: bool) -> None:
        if not path.is_file():
            self.send_error(404)
            return
        self.send_body(path.read_bytes(), with_body, {"ETag": f'"{hash_of(path)}"', "X-Repo-Commit": COMMIT})

    def send_body(self, body: bytes, with_body: bool = True, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the output of the tests free of requests."""


def hash_of(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def fake_hub(root: Path) -> Iterator[str]:
    """The address of a hub with the models in ``root``, while it is running."""
    handler = type("Handler", (Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
