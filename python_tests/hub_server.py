"""A stand-in for the Hugging Face Hub: an HTTP server with the few calls that pushes and downloads need."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stand_in"
COMMIT = "0" * 40


class Hub:
    """Repositories as mappings of file names to bytes, by name; ``private`` holds the names of private ones."""

    def __init__(self):
        self.repositories = {}
        self.private = set()
        self.gated = set()
        self.reads = []  # the files that were downloaded
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    @staticmethod
    def point_to(monkeypatch, endpoint):
        """Make huggingface_hub, which reads HF_ENDPOINT once, when it is imported, use this address."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def is_allowed(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code="", message="refused"):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.is_allowed:
            return self.refuse(401, message="Invalid username or password.")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if not name.startswith("user/"):
                return self.refuse(403, message="You don't have the rights to create a model under this namespace")
            self.hub.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer({"url": f"{self.hub.endpoint}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name, action = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", self.path).groups()
        if action == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.hub.endpoint}/{name}/commit/{COMMIT}"
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_GET(self):
        found = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
        if found is None:
            return self.refuse(404)
        name, revision, file = found.groups()
        if name not in self.hub.repositories or (name in self.hub.private and not self.is_allowed):
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if name in self.hub.gated:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        content = self.hub.repositories[name].get(file)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if self.command == "GET":
            self.hub.reads.append(file)
        return self.answer(content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET
