"""A small server that speaks the Hub's API as its client does: repositories, commits with large files, downloads."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
_LARGE = (".safetensors", ".parquet", ".png")


@dataclass
class Repo:
    """Files by path, of each commit; `large` names those that git LFS would keep."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(b"".join(sorted(name.encode() + data for name, data in files.items()))).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub(http.server.ThreadingHTTPServer):
    """`repos` by name; `asked`, the requests; `faults`, one a download: "cut", "503"; `wrong`, what is sent instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.wrong: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Put files where somebody published them; returns the commit."""
        repo = self.repos.setdefault(name, Repo())
        return repo.commit((repo.commits[-1][1] if repo.commits else {}) | files)

    def handle_error(self, *args: object) -> None:
        pass


def _is_large(path: str) -> bool:
    return path.endswith(_LARGE)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        self.route("PUT")

    def route(self, method: str) -> None:
        self.server.asked.append(f"{method} {self.path}")
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        for pattern, handler in ROUTES:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return handler(self, *found.groups())
        self.json({"error": f"unknown {method} {path}"}, 404)

    def json(self, value: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), status, **{"Content-Type": "application/json", **headers})

    def send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repo(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.is_known()):
            self.json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self) -> None:
        if not self.is_known():
            return self.json({"error": "Invalid token"}, 401)
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repos:
            return self.json({"error": "exists", "url": f"{self.server.url}/datasets/{name}"}, 409)
        repo = self.server.repos[name] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.json({"url": f"{self.server.url}/datasets/{name}", "name": name})

    def no_model(self, _: str) -> None:
        self.json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self.repo(name)
        found = repo and repo.at(revision or "main")
        if repo and not found:
            return self.json({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        if found:
            siblings = [{"rfilename": path} for path in sorted(found[1])]
            facts = {"id": name, "sha": found[0], "private": False, "tags": [], "siblings": siblings}
            self.json(facts)

    def tree(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        found = repo and repo.at(revision)
        if not found:
            return
        entries = []
        for path, data in sorted(found[1].items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
            if _is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self.json(entries)

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        ok = content.startswith("---\n") and "\n---\n" in content
        self.json({"errors": [] if ok else [{"message": "no metadata"}], "warnings": []}, 200 if ok else 400)

    def preupload(self, name: str, _: str) -> None:
        if not self.is_known():
            return self.json({"error": "Invalid token"}, 401)
        asked = json.loads(self.body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular", "shouldIgnore": False}
            for f in asked
        ]
        self.json({"files": modes})

    def batch(self, name: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/lfs/{one['oid']}"
            actions = {} if one["oid"] in self.server.objects else {"upload": {"href": href}}
            objects.append({**one, "actions": actions} if actions else one)
        self.json({"transfer": "basic", "objects": objects}, **{"Content-Type": "application/vnd.git-lfs+json"})

    def put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.json({"error": "wrong hash"}, 400)
        self.server.objects[oid] = self.body
        self.send(b"")

    def commit(self, name: str, _: str) -> None:
        if not self.is_known():
            return self.json({"error": "Invalid token"}, 401)
        repo = self.server.repos[name]
        files = dict(repo.commits[-1][1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            parent = value.get("parentCommit") if item["key"] == "header" else None
            if parent and parent != repo.commits[-1][0]:
                return self.json({"error": "the repository has changed"}, 412)
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if item["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        oid = repo.commit(files)
        self.json({"commitUrl": f"{self.server.url}/datasets/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        found = repo and repo.at(revision)
        if not found:
            return
        if path not in found[1]:
            return self.json({"error": "no such file"}, 404, **{"X-Error-Code": "EntryNotFound"})
        data = found[1][path]
        tag = hashlib.sha256(data).hexdigest() if _is_large(path) else _blob(data)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
        if _is_large(path):
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
        fault = self.server.faults.pop(0) if self.command == "GET" and self.server.faults else ""
        if fault == "503":
            return self.json({"error": "busy"}, 503)
        begin = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        start = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        for header, value in headers.items():
            self.send_header(header, value)
        if begin:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        data = self.server.wrong.get(path, data)
        if fault == "cut":
            self.wfile.write(data[start : (start + len(data)) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[start:])


_REPO = r"/api/datasets/([\w.-]+/[\w.-]+)"
ROUTES = (
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (r"GET /api/models/(.+)", Handler.no_model),
    (rf"GET {_REPO}", Handler.info),
    (rf"GET {_REPO}/revision/(.+)", Handler.info),
    (rf"GET {_REPO}/tree/([^/]+)", Handler.tree),
    (rf"POST {_REPO}/preupload/(.+)", Handler.preupload),
    (rf"POST {_REPO}/commit/(.+)", Handler.commit),
    (r"POST /datasets/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(\w+)", Handler.put),
    (r"(?:GET|HEAD) /datasets/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub, until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
