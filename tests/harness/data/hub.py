"""A local server of one Hub data set, with just the requests that `huggingface_hub` and `datasets` make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"


@contextmanager
def served(name: str, folder: Path) -> Iterator[str]:
    """Serve the files of a folder as the data set `name` at COMMIT. Yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def json(self, content: object) -> None:
            self.answer(json.dumps(content).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api, files = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
                self.json(
                    {
                        "_id": "1",
                        "id": name,
                        "sha": COMMIT,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                        "siblings": [{"rfilename": entry["path"]} for entry in entries()],
                    }
                )
            elif path == f"{api}/tree/{COMMIT}":
                self.json(entries())
            elif path.startswith(files) and (file := folder / path.removeprefix(files).partition("/")[2]).is_file():
                content = file.read_bytes()
                headers = {"ETag": f'"{oid(file)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
                if span := self.headers.get("Range"):
                    first, _, last = span.removeprefix("bytes=").partition("-")
                    start, stop = int(first), int(last or len(content) - 1) + 1
                    headers["Content_Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
                    self.answer(content[start:stop], 206, **headers)
                else:
                    self.answer(content, **headers)
            else:
                self.answer(b"", 404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.json([entry for entry in entries() if entry["path"] in unquote(asked)])

    def oid(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def entries() -> list[dict]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": oid(f)} for f in files
        ]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
