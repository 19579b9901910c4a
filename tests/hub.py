"""A small hub on loopback that the real client talks to: repositories, commits, downloads, faults."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_thisIsTheSecretTokenOfTheTest"


class Hub:
    """What the hub knows, and what it was asked. ``faults`` answers matching requests with an error first."""

    def __init__(self):
        self.repositories: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.sent = Counter()
        self.faults: list[tuple[str, int, int]] = []  # pattern, status, how often
        self.held: threading.Event | None = None  # weights wait for it
        self.gated: set[str] = set()  # repositories whose files ask for a licence to be accepted first
        self.renamed: dict[str, str] = {}  # old names and the new ones
        self.over = threading.Event()
        self.stalled = False  # large downloads stop after their half, and the line stays open
        self.cut_after: int | None = None  # bytes of the next large download, then the line goes dead
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home, token=TOKEN):
        """For a process whose hub this is."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token,
        }

    def add_model(self, name, files, private=False):
        self.repositories[name] = {"private": private, "files": dict(files)}

    def move_on(self, name, files):
        """A commit of other files; the one before can still be had by its name."""
        before = self.repositories[name].setdefault("before", {})
        before[self.commit_of(name)] = self.files(name)
        self.repositories[name]["files"] = dict(files)

    def new_place(self, path):
        """Where a path leads that names a repository by its old name; None where it does not."""
        for old, new in self.renamed.items():
            if re.search(rf"/{old}(?=/|\?|$)", path):
                return path.replace(old, new)
        return None

    def commit_of(self, name):
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.files(name).items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def files(self, name):
        return self.repositories[name]["files"]

    def at(self, name, revision):
        """Commit and files of a revision; None where there is none."""
        if revision in (None, "main", self.commit_of(name)):
            return self.commit_of(name), self.files(name)
        before = self.repositories[name].get("before", {})
        return (revision, before[revision]) if revision in before else None

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer("GET")

            def do_HEAD(self):
                self.answer("HEAD")

            def do_POST(self):
                self.answer("POST")

            def do_PUT(self):
                self.answer("PUT")

            def answer(self, method):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                line = f"{method} {self.path}"
                hub.requests.append(line)
                for number, (pattern, status, times) in enumerate(hub.faults):
                    if times and re.search(pattern, line):
                        hub.faults[number] = (pattern, status, times - 1)
                        if status <= 0:  # the line goes dead, at once or after nothing was said
                            hub.over.wait(-60 * status)
                            self.close_connection = True
                            return
                        # As the real one may: the answer repeats what it was sent.
                        said = f"no: {self.headers.get('Authorization')}"
                        self.reply(status, {"error": said}, {"X-Error-Message": said, "Retry-After": "0"})
                        return
                if place := hub.new_place(self.path):
                    self.reply(307, {}, {"Location": place})
                    return
                for pattern, function in ROUTES:
                    if match := re.fullmatch(pattern, line):
                        function(hub, self, body, *match.groups())
                        return
                self.reply(404, {"error": "no such page"})

            def reply(self, status, content, headers=(), head=False):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for key, value in dict(headers).items():
                    self.send_header(key, value)
                if not isinstance(content, bytes):
                    self.send_header("Content-Type", "application/json")
                if "Content-Length" not in dict(headers):
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        return Handler


def _create(hub, request, body):
    asked = json.loads(body)
    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
    if name in hub.repositories:
        request.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
        return
    private = asked.get("visibility") == "private" or asked.get("private") is True
    hub.repositories[name] = {"private": private, "files": {}}
    request.reply(200, {"url": f"{hub.url}/{name}", "id": name})


def _preupload(hub, request, body, name):
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
            "shouldIgnore": False,
            "oid": None,
        }
        for file in json.loads(body)["files"]
    ]
    request.reply(200, {"files": files})


def _batch(hub, request, body, name):
    objects = []
    for entry in json.loads(body)["objects"]:
        answer = {"oid": entry["oid"], "size": entry["size"], "authenticated": True}
        if entry["oid"] not in hub.blobs:
            answer["actions"] = {"upload": {"href": f"{hub.url}/upload/{entry['oid']}", "header": {}}}
        objects.append(answer)
    request.reply(200, {"transfer": "basic", "objects": objects})


def _upload(hub, request, body, oid):
    assert hashlib.sha256(body).hexdigest() == oid
    hub.blobs[oid] = body
    hub.sent[oid] += 1
    request.reply(200, {})


def _commit(hub, request, body, name):
    files = hub.files(name)
    for line in body.decode().splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = hub.blobs[value["oid"]]
    oid = hub.commit_of(name)
    request.reply(200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""})


def _info(hub, request, body, name, revision=None):
    if name not in hub.repositories:
        request.reply(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        return
    found = hub.at(name, revision)
    if found is None:
        request.reply(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        return
    siblings = [{"rfilename": path} for path in found[1]]
    content = {"id": name, "modelId": name, "sha": found[0], "siblings": siblings}
    request.reply(200, {**content, "private": False, "tags": [], "downloads": 0, "likes": 0})


def _tree(hub, request, body, name, revision):
    if name not in hub.repositories:
        request.reply(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        return
    found = hub.at(name, revision)
    if found is None:
        request.reply(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        return
    entries = []
    for path, data in found[1].items():
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if path.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        entries.append(entry)
    request.reply(200, entries, {"X-Repo-Commit": found[0]})


def _resolve(hub, request, body, name, revision, path):
    if name in hub.gated:
        said = f"Access to model {name} is restricted: {request.headers.get('Authorization')}"
        request.reply(403, {"error": said}, {"X-Error-Code": "GatedRepo", "X-Error-Message": said})
        return
    found = hub.at(name, revision) if name in hub.repositories else None
    data = found[1].get(path) if found else None
    if data is None:
        request.reply(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"})
        return
    if path.endswith(".safetensors"):
        tag = hashlib.sha256(data).hexdigest()
    else:
        tag = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    headers = {"ETag": f'"{tag}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
    status, start = 200, 0
    if wanted := request.headers.get("Range"):
        start = int(re.match(r"bytes=(\d+)-", wanted)[1])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        status = 206
    if hub.held and request.command == "GET" and path.endswith(".safetensors"):
        hub.held.wait()
    part = data[start:]
    headers["Content-Length"] = str(len(part))
    if request.command == "GET" and hub.cut_after is not None and len(part) > hub.cut_after:
        part, hub.cut_after = part[: hub.cut_after], None
        request.close_connection = True
    if request.command == "GET" and hub.stalled and path.endswith(".safetensors"):
        part = part[: len(part) // 2]
        hub.sent[path] += len(part)
        request.reply(status, part, headers)
        hub.over.wait(60)
        request.close_connection = True
        return
    if request.command == "GET":
        hub.sent[path] += len(part)
    request.reply(status, part, headers)


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", _create),
    (rf"POST /api/models/{_NAME}/preupload/main(?:\?.*)?", _preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _batch),
    (r"PUT /upload/(\w+)", _upload),
    (rf"POST /api/models/{_NAME}/commit/main(?:\?.*)?", _commit),
    (
        r"POST /api/validate-yaml",
        lambda hub, request, body: request.reply(200, {"errors": [], "warnings": []}),
    ),
    (rf"GET /api/models/{_NAME}(?:\?.*)?", _info),
    (rf"GET /api/models/{_NAME}/revision/([^?]+)(?:\?.*)?", _info),
    (rf"GET /api/models/{_NAME}/tree/([^?/]+)(?:/)?(?:\?.*)?", _tree),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _resolve),
]
