"""The part of Hugging Face's HTTP interface that the tests use, on this machine."""

import base64
import hashlib
import http.server
import json

from loopback import QuietHandler

COMMIT = "c" * 40


class FakeHub(QuietHandler, http.server.BaseHTTPRequestHandler):
    """Keeps `{repository: {name: content}}` in `repositories` of its server.

    Nobody may write to the repositories of the user "other".
    """

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].split("/")[2:]
        if parts == ["repos", "create"]:
            given = json.loads(body)
            name = given["name"]
            if given.get("organization") == "other":
                return self._reply({"error": "You don't have the rights"}, 403)
            user = given.get("organization") or "me"
            self.server.repositories.setdefault(f"{user}/{name}", {})
            return self._reply({"url": f"{self.server.url}/{user}/{name}"})
        if parts[0] == "validate-yaml":
            return self._reply({"errors": [], "warnings": []})
        _, user, name, action, _ = parts
        if action == "preupload":
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self._reply({"files": [{"path": x["path"], **mode} for x in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                path = line["value"]["path"]
                self.server.repositories[f"{user}/{name}"][path] = content
        url = f"{self.server.url}/{user}/{name}/commit/{COMMIT}"
        return self._reply({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        _, user, name, *_, path = self.path.split("/")
        files = self.server.repositories.get(f"{user}/{name}", {})
        if path in files:
            return self._reply(files[path])
        code = "EntryNotFound" if files else "RepoNotFound"
        return self._reply(b"", 404, {"X-Error-Code": code})

    def _reply(self, content, status=200, headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        etag = hashlib.sha256(content).hexdigest()
        sizes = {"Content-Length": str(len(content)), "ETag": f'"{etag}"'}
        for item in ({"X-Repo-Commit": COMMIT} | sizes | (headers or {})).items():
            self.send_header(*item)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
