"""A model hub on the loopback interface, as far as `from_pretrained`, `load_dataset` and `upload_folder` ask for one.

Programs reach it through the variables of `hub_environment`, unmodified: what works with it works with a mirror that
is named in HF_ENDPOINT. `fill_hub_cache` is the other way to do without a hub: the cache that a download would leave.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
TREE = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>.+?)/tree/(?P<revision>[^/]+)/?(?P<path>.*)")
INFO = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>.+?)(/revision/(?P<revision>[^/]+))?")
PREUPLOAD = re.compile(r"/api/models/(?P<name>.+)/preupload/main")
LFS = re.compile(r"/(?P<name>.+)\.git/info/lfs/objects/batch")
COMMIT = re.compile(r"/api/models/(?P<name>.+)/commit/main")
TOKEN = "hf_good"  # who has it may upload


def commit_id(folder):
    """40 hex digits that change with any name or byte of the files in `folder`."""
    digest = hashlib.sha1()
    for path in _files(folder):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    number = 0  # of the request, from 1 on; uploads have none

    def do_GET(self):
        """Answer a request for a file, a folder's listing or a repository's description; HEAD, too."""
        self.server.requests.append(f"{self.command} {self.path}")
        self.number = len(self.server.requests)
        url = unquote(urlsplit(self.path).path)
        match = FILE.fullmatch(url) or TREE.fullmatch(url) or INFO.fullmatch(url)
        if self.server.status != 200:
            return self.answer(self.server.status)
        if match is None:
            return self.answer(404)
        kind = "datasets" if (match["kind"] or "").startswith("datasets") else "models"
        folder = self.server.repositories.get(kind, {}).get(match["name"])
        if folder is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        revisions = folder if isinstance(folder, dict) else {"main": folder}
        wanted = match["revision"] or "main"
        folder = next((own for name, own in revisions.items() if wanted in (name, commit_id(own))), None)
        if folder is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit = commit_id(folder)
        if match.re is INFO:
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in _files(folder)]
            return self.answer_json({"id": match["name"], "sha": commit, "siblings": siblings})
        path = Path(folder, match["path"])
        if match.re is TREE and path.is_dir():
            found = path.rglob("*") if "recursive=true" in self.path.lower() else path.iterdir()
            return self.answer_json([{"type": "directory" if child.is_dir() else "file", "oid": commit,
                                      "path": str(child.relative_to(folder)), "size": child.stat().st_size}
                                     for child in sorted(found)])
        if match.re is FILE and path.is_file():
            return self.answer_file(path.read_bytes(), commit)
        self.answer(404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def do_POST(self):
        """Answer the steps of an upload: the repository, which files are large, where they go, the commit."""
        self.server.requests.append(f"{self.command} {self.path}")
        url, sent = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.uploads is None or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401)
        if url == "/api/repos/create":
            repository = json.loads(sent)
            name = f"{repository['organization']}/{repository['name']}"
            created = self.server.repositories["models"].setdefault(name, Path(self.server.uploads, name))
            created.mkdir(parents=True, exist_ok=True)
            return self.answer_json({"url": f"{self.server.address}/{name}", "name": name})
        if url == "/api/validate-yaml":  # of the card
            return self.answer_json({"errors": [], "warnings": []})
        match = PREUPLOAD.fullmatch(url) or LFS.fullmatch(url) or COMMIT.fullmatch(url)
        if match is None or match["name"] not in self.server.repositories["models"]:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if match.re is PREUPLOAD:
            return self.answer_json({"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(sent)["files"]]})
        if match.re is LFS:
            return self.answer_json({"objects": [
                {**file, "actions": {"upload": {"href": f"{self.server.address}/store/{file['oid']}"}}}
                for file in json.loads(sent)["objects"]]})
        folder = self.server.repositories["models"][match["name"]]
        for line in map(json.loads, sent.splitlines()):
            if line["key"] in ("file", "lfsFile"):
                value, path = line["value"], folder / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.server.stored[value["oid"]] if line["key"] == "lfsFile"
                                 else base64.b64decode(value["content"]))
        commit = commit_id(folder)
        self.answer_json({"commitUrl": f"{self.server.address}/{match['name']}/commit/{commit}", "commitOid": commit})

    def do_PUT(self):
        """Keep a large file under the hash that it was announced with, if that is its hash."""
        self.server.requests.append(f"{self.command} {self.path}")
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/store/")
        self.server.stored[oid] = sent
        self.answer(200 if hashlib.sha256(sent).hexdigest() == oid else 400)

    def answer_json(self, value):
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer_file(self, content, commit):
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(200, headers, content)
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, headers, content[first:last + 1])

    def answer(self, status, headers=None, content=b""):
        headers = headers or {}
        if (fault := self.server.fault) and fault.strikes(self.number):
            status, headers, content = fault.change(self, status, headers, content)
        if status is None:  # no answer at all
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Keep the tests' output quiet; `endpoint.requests` has them all."""


class Endpoint(str):
    """The address of a running hub; `requests` lists what was asked of it, as "METHOD PATH", and `server.fault` may
    change its answers: `strikes(number)` of the request, and `change(handler, status, headers, content)`."""

    requests, server = (), None


@contextlib.contextmanager
def hub(repositories, status=200, uploads=None):
    """Serve `{"models": {NAME: folder}, "datasets": {NAME: folder}}` at a free port of 127.0.0.1; yields the Endpoint.
    In the place of a folder may be a dict of revisions, `{"main": folder, "v1": folder}`.

    With a `status` other than 200 every answer is that error, as from a hub that is down. Models that are uploaded
    (with TOKEN) come to be in the folder `uploads`, and are served from there; by default nobody may upload.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.repositories, server.status, server.requests, server.fault = repositories, status, [], None
    server.uploads, server.stored, server.address = uploads, {}, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    endpoint = Endpoint(server.address)
    endpoint.requests, endpoint.server = server.requests, server
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hub_environment(endpoint, hf_home, **others):
    """The environment in which a fresh process sees only the hub at `endpoint` and the caches below `hf_home`."""
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")}
    return inherited | {"HF_ENDPOINT": str(endpoint), "HF_HOME": str(hf_home), "HF_HUB_DISABLE_XET": "1"} | others


def fill_hub_cache(hf_home, models):
    """Lay `{NAME: folder}` out below `hf_home` as downloads of them would; HF_HUB_OFFLINE=1 finds them there."""
    for name, folder in models.items():
        commit = commit_id(folder)
        repository = Path(hf_home, "hub", "models--" + name.replace("/", "--"))
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit, dirs_exist_ok=True)
