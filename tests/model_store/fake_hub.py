"""A model hub in memory, asked by the real `huggingface_hub` over its HTTP paths.

Only the network is replaced. The library makes the requests, raises its own errors and writes the
files.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

# The HTTP library that this version of the hub's library stands on.
HTTP: Any = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


@dataclass
class Repository:
    """Files by commit; the last commit is `main`."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        before = list(self.commits.values())[-1] if self.commits else {}
        now = {**before, **files}
        parts = [
            str(len(self.commits)).encode(),
            *(name.encode() + data for name, data in sorted(now.items())),
        ]
        sha = hashlib.sha1(b"".join(parts)).hexdigest()
        self.commits[sha] = now
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = list(self.commits)[-1] if revision == "main" else revision
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class FakeHub:
    """Repositories by name, and the requests that were made as `METHOD path`.

    `messages` are those of commits. `writer` is the only owner who may write. An `unreachable` hub
    answers nothing. `sizes` replaces the sizes that the hub tells of files.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    writer: str | None = None
    unreachable: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    def answer(self, request: Any) -> Any:
        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        if self.unreachable:
            raise HTTP.ConnectError("[Errno -2] Name or service not known", request=request)
        if path == "/api/validate-yaml":
            return HTTP.Response(200, json={"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(request.content))
        if path.startswith(("/api/models/", "/api/datasets/")):
            _, _, _, owner, name, *rest = path.split("/")
            return self._api(f"{owner}/{name}", rest, request)
        owner, name, resolve, revision, file = path.removeprefix("/datasets").removeprefix("/").split("/", 4)
        assert resolve == "resolve", path
        return self._file(f"{owner}/{name}", revision, file, request.method)

    def _create(self, asked: dict[str, Any]) -> Any:
        name = f"{asked['organization']}/{asked['name']}"
        if self.writer is None:
            return HTTP.Response(401, json={"error": "Invalid username or password."})
        if asked["organization"] != self.writer:
            return HTTP.Response(
                403, json={"error": f"You don't have the rights for {asked['organization']}"}
            )
        known = name in self.repositories
        if not known:
            self.repositories[name] = Repository(
                private=asked.get("private") or asked.get("visibility") == "private"
            )
            self.repositories[name].commit({".gitattributes": b""})
        return HTTP.Response(
            409 if known else 200, json={"url": f"https://huggingface.co/{name}", "id": name}
        )

    def _api(self, name: str, rest: list[str], request: Any) -> Any:
        repository = self.repositories.get(name)
        if repository is None:
            return HTTP.Response(401, headers={"X-Error-Code": "RepoNotFound"}, json={"error": "not found"})
        if rest[:1] == ["preupload"]:
            files = json.loads(request.content)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return HTTP.Response(200, json={"files": modes})
        if rest[:1] == ["commit"]:
            lines = [json.loads(line) for line in request.content.splitlines()]
            files = {}
            for line in lines:
                if line["key"] == "header":
                    self.messages.append(line["value"]["summary"])
                else:
                    assert line["key"] == "file", line["key"]
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            sha = repository.commit(files)
            url = f"https://huggingface.co/{name}/commit/{sha}"
            return HTTP.Response(200, json={"success": True, "commitOid": sha, "commitUrl": url})
        found = repository.at(rest[1] if rest[:1] in (["revision"], ["tree"]) else "main")
        if found is None:
            return HTTP.Response(
                404, headers={"X-Error-Code": "RevisionNotFound"}, json={"error": "Invalid rev id"}
            )
        sha, content = found
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in content.items()
            ]
            return HTTP.Response(200, json=tree)
        siblings = [
            {"rfilename": n, "size": self.sizes.get(n, len(d)), "blobId": hashlib.sha1(d).hexdigest()}
            for n, d in content.items()
        ]
        info = {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": repository.private}
        return HTTP.Response(200, json={**info, "tags": [], "siblings": siblings})

    def _file(self, name: str, revision: str, file: str, method: str) -> Any:
        found = self.repositories[name].at(revision)
        assert found is not None
        sha, content = found
        data = content[file]
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "Content-Length": str(len(data)),
        }
        return HTTP.Response(200, headers=headers, content=b"" if method == "HEAD" else data)


@contextmanager
def hub_in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Put a hub in memory in the place of the network, for the real library."""
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)

    def client() -> Any:
        hooks = {"request": [hf_request_event_hook]}
        return HTTP.Client(transport=HTTP.MockTransport(hub.answer), event_hooks=hooks, follow_redirects=True)

    huggingface_hub.set_client_factory(client)
    try:
        yield hub
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
