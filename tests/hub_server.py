"""A small Hugging Face Hub on 127.0.0.1: repositories in memory, read and written."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """What the server has, and what it was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Files] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def add(self, name: str, directory: Path) -> None:
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        self.repositories[name] = files

    def commit(self, name: str) -> str:
        content = repr(sorted(self.repositories[name].items())).encode()
        return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, value: object, status: int = 200, **headers: str) -> None:
            body = json.dumps(value).encode()
            self._send(status, body, Content_Type="application/json", **headers)

        def _missing(self, code: str) -> None:
            self._json({"error": code}, 404, X_Error_Code=code)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization"))
            found = re.fullmatch(
                r"(?:/api/models)?/(\w+/[\w.-]+)"
                r"(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?",
                path,
            )
            if found is None or found[1] not in hub.repositories:
                return self._missing("RepoNotFound")
            files, sha = hub.repositories[found[1]], hub.commit(found[1])
            if found[3] not in (None, "main", sha):
                return self._missing("RevisionNotFound")
            if found[2] == "resolve":
                if found[4] not in files:
                    return self._missing("EntryNotFound")
                body = files[found[4]]
                tag = f'"{hashlib.sha1(body).hexdigest()}"'
                return self._send(200, body, ETag=tag, X_Repo_Commit=sha)
            if found[2] == "tree":
                rows = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(body),
                        "oid": hashlib.sha1(body).hexdigest(),
                    }
                    for name, body in files.items()
                ]
                return self._json(rows)
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": found[1], "sha": sha, "siblings": siblings})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization"))
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                body = b"".join(parts)
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                owner = asked.get("organization") or "me"
                name = f"{owner}/{asked['name']}"
                known = name in hub.repositories
                hub.repositories.setdefault(name, {})
                url = f"{hub.url}/{name}"
                return self._json({"url": url, "name": name}, 409 if known else 200)
            found = re.match(
                r"/api/models/(\w+/[\w.-]+)/(preupload|commit)/", self.path
            )
            if found is None:
                return self._json({})
            if found[2] == "preupload":
                files = json.loads(body)["files"]
                rows = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                return self._json({"files": rows})
            for line in body.splitlines():
                action = json.loads(line)
                if action["key"] == "file":
                    value = action["value"]
                    content = base64.b64decode(value["content"])
                    hub.repositories[found[1]][value["path"]] = content
            sha = hub.commit(found[1])
            url = f"{hub.url}/{found[1]}/commit/{sha}"
            self._json({"commitUrl": url, "commitOid": sha, "success": True})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
