# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone


LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".pth", ".png", ".jpg", ".arrow")
LFS_SIZE = 1 << 20


class File:
    """Content of a file, and the names that the Hub gives it."""

    def __init__(self, content: bytes, lfs: bool = False):
        self.content = content
        self.lfs = lfs
        self.git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.oid = self.sha256 if lfs else self.git_oid

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid}
        return {**entry, "lfs": self.pointer} if self.lfs else entry

    @property
    def pointer(self) -> dict:
        return {"oid": self.sha256, "sha256": self.sha256, "size": len(self.content), "pointerSize": 130}


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    date: str
    parent: str | None
    files: Mapping[str, File]


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def is_lfs(path: str, size: int) -> bool:
    return size >= LFS_SIZE or path.endswith(LFS_SUFFIXES)


class Repo:
    """Commits of a repository, and the branches and tags that name them. A commit is there as a whole or not at all."""

    def __init__(self, kind: str, repo_id: str, private: bool):
        self.kind = kind
        self.id = repo_id
        self.private = private
        self.created = now()
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        self.commit("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n")})

    def commit(self, branch: str, title: str, files: Mapping[str, File]) -> str:
        parent = self.branches.get(branch)
        tree = "".join(f"{path}{file.oid}" for path, file in sorted(files.items()))
        sha = hashlib.sha1(f"{self.id}{parent}{len(self.commits)}{title}{tree}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, title, now(), parent, dict(files))
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> Commit | None:
        revision = revision.removeprefix("refs/heads/")
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits of a revision, the newest first."""
        commits = []
        commit = self.find(revision)
        while commit is not None:
            commits.append(commit)
            commit = self.commits.get(commit.parent)
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents of a revision's files by path, without what the Hub made itself."""
        files = self.find(revision).files
        return {path: file.content for path, file in sorted(files.items()) if path != ".gitattributes"}


def folders(files: Mapping[str, File]) -> set[str]:
    return {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}


def folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
