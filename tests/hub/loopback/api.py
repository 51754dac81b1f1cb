# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The Hub's routes, as functions of the hub and a request; each answers while it alone holds the hub."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from email.message import Message
from typing import NamedTuple
from urllib.parse import parse_qs

from .repos import Commit, File, Repo, folder_entry, folders, is_lfs


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Request(NamedTuple):
    method: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    user: str | None

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def say(value, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def user_of(request: Request) -> str:
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    return request.user


def repo_of(hub, request: Request, kind: str | None, repo_id: str, write: bool = False) -> Repo:
    repo = hub.repos.get(((kind or "models").rstrip("/"), repo_id))
    owner = repo_id.split("/")[0]
    if repo is None or (repo.private and request.user != owner):
        raise Refused(404 if request.user else 401, "Repository not found", "RepoNotFound")
    if write and user_of(request) != owner:
        raise Refused(403, "You don't have the rights to write to this repository.")
    return repo


def commit_of(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def url_of(hub, repo: Repo) -> str:
    return f"{hub.endpoint}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.id}"


# ---- Users and repositories ----


def whoami(hub, request: Request) -> Answer:
    return say({"type": "user", "name": user_of(request), "orgs": [], "auth": {"type": "access_token"}})


def validate_yaml(hub, request: Request) -> Answer:
    return say({"errors": [], "warnings": []})


def create_repo(hub, request: Request) -> Answer:
    asked = json.loads(request.body)
    owner = asked.get("organization") or user_of(request)
    if owner != user_of(request):
        raise Refused(403, "You don't have the rights to create a repository under this namespace.")
    kind, repo_id = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
    there = (kind, repo_id) in hub.repos
    if not there:
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        hub.repos[kind, repo_id] = Repo(kind, repo_id, private)
    return say({"url": url_of(hub, hub.repos[kind, repo_id]), "name": repo_id}, 409 if there else 200)


def info(hub, request: Request, kind: str, repo_id: str, revision: str = "main") -> Answer:
    repo = repo_of(hub, request, kind, repo_id)
    commit = commit_of(repo, revision)
    siblings = []
    for path, file in sorted(commit.files.items()):
        sibling = {"rfilename": path}
        if request.flag("blobs"):
            sibling |= {"size": len(file.content), "blobId": file.git_oid}
            sibling |= {"lfs": file.pointer} if file.lfs else {}
        siblings.append(sibling)
    return say(
        {
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "createdAt": repo.created,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
    )


# ---- Trees, branches, tags ----


def tree(hub, request: Request, kind: str, repo_id: str, revision: str, path: str | None = None) -> Answer:
    files = commit_of(repo_of(hub, request, kind, repo_id), revision).files
    there = folders(files)
    if path and path not in there:
        raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
    prefix = f"{path}/" if path else ""

    def inside(name: str) -> bool:
        return name.startswith(prefix) and (request.flag("recursive") or "/" not in name[len(prefix) :])

    entries = [folder_entry(name) for name in sorted(there) if inside(name)]
    return say(entries + [file.entry(name) for name, file in sorted(files.items()) if inside(name)])


def paths_info(hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    files = commit_of(repo_of(hub, request, kind, repo_id), revision).files
    if "json" in request.headers.get("Content-Type", ""):
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    there = folders(files)
    entries = [
        files[path].entry(path) if path in files else folder_entry(path)
        for path in paths
        if path in there | files.keys()
    ]
    return say(entries)


def refs(hub, request: Request, kind: str, repo_id: str) -> Answer:
    repo = repo_of(hub, request, kind, repo_id)

    def listed(names: dict[str, str], prefix: str) -> list[dict]:
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

    named = {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/")}
    return say({**named, "converts": [], "pullRequests": []})


def commits(hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repo = repo_of(hub, request, kind, repo_id)
    commit_of(repo, revision)
    return say(
        [
            {"id": commit.sha, "title": commit.title, "message": "", "authors": [], "date": commit.date}
            for commit in repo.history(revision)
        ]
    )


def create_branch(hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repo = repo_of(hub, request, kind, repo_id, write=True)
    if revision in repo.branches:
        raise Refused(409, "Reference already exists")
    start = json.loads(request.body or b"{}").get("startingPoint") or "main"
    repo.branches[revision] = commit_of(repo, start).sha
    return say({})


def create_tag(hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repo = repo_of(hub, request, kind, repo_id, write=True)
    repo.tags[json.loads(request.body)["tag"]] = commit_of(repo, revision).sha
    return say({})


# ---- Uploads ----


def preupload(hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    files = commit_of(repo_of(hub, request, kind, repo_id, write=True), revision).files
    modes = []
    for asked in json.loads(request.body)["files"]:
        path = asked["path"]
        mode = "lfs" if is_lfs(path, asked["size"]) else "regular"
        oid = files[path].oid if path in files else None
        modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return say({"files": modes})


def lfs_batch(hub, request: Request, kind: str | None, repo_id: str) -> Answer:
    repo_of(hub, request, kind, repo_id, write=True)
    objects = []
    for asked in json.loads(request.body)["objects"]:
        entry = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in hub.objects:
            links = {"upload": f"{hub.endpoint}/lfs/{asked['oid']}", "verify": f"{hub.endpoint}/lfs/verify"}
            entry["actions"] = {name: {"href": href, "header": {}} for name, href in links.items()}
        objects.append(entry)
    return say({"transfer": "basic", "objects": objects})


def lfs_put(hub, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "The content is not that of the sha256.")
    hub.objects[oid] = request.body
    return Answer()


def lfs_verify(hub, request: Request) -> Answer:
    asked = json.loads(request.body)
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "No such object.")
    return say({})


def commit(hub, request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repo = repo_of(hub, request, kind, repo_id, write=True)
    parent = commit_of(repo, revision)
    if revision not in repo.branches:
        raise Refused(400, "Commits go to a branch.")
    files, title = dict(parent.files), ""
    for operation in map(json.loads, request.body.splitlines()):
        value = operation["value"]
        match operation["key"]:
            case "header":
                title = value["summary"]
                if value.get("parentCommit") and not parent.sha.startswith(value["parentCommit"]):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            case "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            case "lfsFile":
                if value["oid"] not in hub.objects:
                    raise Refused(400, f"The content of {value['path']} was not uploaded.")
                files[value["path"]] = File(hub.objects[value["oid"]], lfs=True)
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            case "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(prefix)}
    sha = repo.commit(revision, title, files)
    return say({"success": True, "commitOid": sha, "commitUrl": f"{url_of(hub, repo)}/commit/{sha}"})


# ---- Downloads ----


def resolve(hub, request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Answer:
    commit = commit_of(repo_of(hub, request, kind, repo_id), revision)
    if path not in commit.files:
        raise Refused(404, "Entry not found", "EntryNotFound")
    file = commit.files[path]
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Repo-Commit": commit.sha,
        "ETag": f'"{file.oid}"',
        "Accept-Ranges": "bytes",
    }
    if file.lfs:
        headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-ETag": f'"{file.oid}"'}
    size = len(file.content)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if request.method != "GET" or match is None:
        return Answer(200, file.content, headers)
    first = int(match[1]) if match[1] else size - int(match[2])
    last = min(int(match[2]) if match[1] and match[2] else size - 1, size - 1)
    if first > last:
        return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
    return Answer(206, file.content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


KIND, REPO, REVISION = r"(?P<kind>models|datasets)", r"(?P<repo_id>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
API = f"/api/{KIND}/{REPO}"
REPO_URL = rf"/(?P<kind>datasets/)?{REPO}"
ROUTES = [
    ({"GET"}, "/api/whoami-v2", whoami),
    ({"POST"}, "/api/validate-yaml", validate_yaml),
    ({"POST"}, "/api/repos/create", create_repo),
    ({"GET", "HEAD"}, API, info),
    ({"GET", "HEAD"}, f"{API}/revision/{REVISION}", info),
    ({"GET"}, f"{API}/tree/{REVISION}(?:/(?P<path>.+))?", tree),
    ({"POST"}, f"{API}/paths-info/{REVISION}", paths_info),
    ({"GET"}, f"{API}/refs", refs),
    ({"GET"}, f"{API}/commits/{REVISION}", commits),
    ({"POST"}, f"{API}/branch/(?P<revision>.+)", create_branch),
    ({"POST"}, f"{API}/tag/{REVISION}", create_tag),
    ({"POST"}, f"{API}/preupload/{REVISION}", preupload),
    ({"POST"}, f"{API}/commit/{REVISION}", commit),
    ({"POST"}, rf"{REPO_URL}\.git/info/lfs/objects/batch", lfs_batch),
    ({"PUT"}, "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ({"POST"}, "/lfs/verify", lfs_verify),
    ({"GET", "HEAD"}, f"{REPO_URL}/resolve/{REVISION}/(?P<path>.+)", resolve),
]
