# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""Uploads of a run to the Hub: whole or not at all, off the training thread, and never the end of the training."""

import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers.utils import logging

from .. import __version__
from .patience import WAITS, attempt, describe


logger = logging.get_logger(__name__)

# Of a run's folder: what is not the LoRA's, and what is read by pickle
EXCLUDED = ("_*", "*/_*", ".*", "*/.*", "checkpoint-*", "last-checkpoint/*", "*.bin", "*.pt", "*.pth", "*.pkl")
# Of a checkpoint: the settings as transformers pickles them, with the token
EXCLUDED_OF_CHECKPOINT = ("training_args.bin",)
STAGING = "_push"
IMPATIENT = 300.0  # seconds after a push that failed in which the next ones are tried once


def run_files(folder: Path) -> dict[str, Path]:
    """Files of a run's folder that belong on the Hub, by their path there."""
    return _files(folder, EXCLUDED)


def checkpoint_files(checkpoint: Path, name: str) -> dict[str, Path]:
    """Files of a checkpoint, by their path in the repository, where it is called `name`."""
    return {f"{name}/{path}": file for path, file in _files(checkpoint, EXCLUDED_OF_CHECKPOINT).items()}


def _files(folder: Path, excluded: tuple[str, ...]) -> dict[str, Path]:
    def kept(path: Path) -> bool:
        return not any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in excluded)

    found = []
    # `os.walk` goes past folders that vanish, as what is staged in this one does when a push in the background ends
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if kept(Path(parent, name))]
        found += [path for name in names if kept(path := Path(parent, name)) and path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def upload_command(
    repo_id: str,
    folder: str | Path,
    path_in_repo: str = ".",
    excluded: tuple[str, ...] = EXCLUDED,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """The command that uploads a folder by hand."""
    words = ["hf", "upload", repo_id, str(folder), path_in_repo]
    for pattern in excluded:
        words += ["--exclude", pattern]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    return shlex.join(words)


def part_of(path: str) -> str:
    """The part of a repository that is replaced as a whole and that a path belongs to: a checkpoint, or `"."`, the run."""
    match = re.match(r"(last-checkpoint|checkpoint-\d+)/", path)
    return match[1] if match else "."


class HubUploads:
    """
    Uploads of a run, one at a time and in the background. One that waits while another runs takes in what comes after it,
    so that they don't pile up. None raises: what fails is told, and at the end `report` says how to finish it.

    Args:
        folder (`str` or `Path`):
            Folder of the run.
        repo_id (`str`):
            Repository, created when needed.
        token (`str`, *optional*):
            Token with the right to write. Defaults to the one that is logged in.
        private (`bool`, *optional*):
            Whether a new repository is private.
        revision (`str`, *optional*):
            Branch, created when needed.
    """

    def __init__(
        self,
        folder: str | Path,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
    ):
        self.folder = Path(folder)
        self.repo_id = repo_id
        self.token = token
        self.private = private
        self.revision = revision
        self.created = False
        self.missing: dict[str, Path] = {}  # parts that are not on the Hub as they are here
        self._api = HfApi(library_name="trl-focus", library_version=__version__)
        self._lock = threading.Lock()
        self._waiting: dict[str, Path] | None = None
        self._message = ""
        self._sources: dict[str, Path] = {}
        self._folders: list[Path] = []
        self._staged = 0
        self._impatient_until = 0.0
        self._last: Future | None = None
        self._told: str | None = None
        shutil.rmtree(self.folder / STAGING, ignore_errors=True)  # of a run that was killed

    def create_repo(self) -> str:
        """Creates the repository, unless it is there, and returns its full id."""
        made = self._api.create_repo(self.repo_id, token=self.token, private=self.private, exist_ok=True)
        self.repo_id, self.created = made.repo_id, True
        return self.repo_id

    def try_create_repo(self) -> bool:
        """Creates the repository; if it can't, tells so and returns `False`."""
        try:
            attempt(self.create_repo, "Creating it", waits=(), token=self.token)
        except Exception as error:  # whatever the Hub does, the training goes on
            logger.warning(
                f"The repository {self.repo_id} can't be created now: {describe(error, self.token)} Training goes on, and each push "
                "tries again."
            )
        return self.created

    @property
    def running(self) -> bool:
        return self._last is not None and not self._last.done()

    def push(
        self, files: Mapping[str, Path], message: str, sources: Mapping[str, Path]
    ) -> "Future[CommitInfo | None]":
        """
        Uploads files in the background, as they are now, in one commit. The checkpoints among them take the place of those
        of their name on the Hub.

        Args:
            files (`dict[str, Path]`):
                Files by their path in the repository.
            message (`str`):
                Message of the commit.
            sources (`dict[str, Path]`):
                Folder here of each part (`"."`, or a checkpoint's name).

        Returns:
            `Future`: The commit, or `None` if the upload failed.
        """
        with self._lock:
            self._staged += 1
            folder = self.folder / STAGING / str(self._staged)
            try:
                staged = _stage(files, folder)
            except OSError as error:  # a full disk, say
                shutil.rmtree(folder, ignore_errors=True)
                self._give_up(sources, error)
                nothing = Future()
                nothing.set_result(None)
                return nothing
            merged = self._waiting is not None
            kept = {path: file for path, file in (self._waiting or {}).items() if part_of(path) not in sources}
            self._waiting = {**kept, **staged}
            self._folders = [*(self._folders if merged else []), folder]
            self._sources = {**(self._sources if merged else {}), **sources}
            self._message = message
            if not merged:
                self._last = self._api.run_as_future(self._send)
            return self._last

    def _send(self) -> CommitInfo | None:
        with self._lock:
            files, sources, message, folders = self._waiting, self._sources, self._message, self._folders
            self._waiting = None
        waits = WAITS if time.monotonic() > self._impatient_until else ()
        try:
            commit = attempt(partial(self._commit, files, message), f"The push to {self.repo_id}", waits, self.token)
            for part in sources:
                self.missing.pop(part, None)
            return commit
        except Exception as error:  # whatever the Hub does, the training goes on
            self._give_up(sources, error)
            return None
        finally:
            with self._lock:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)
                staging = self.folder / STAGING
                if staging.is_dir() and not any(staging.iterdir()):
                    staging.rmdir()

    def _give_up(self, sources: Mapping[str, Path], error: Exception):
        logger.warning(f"The push to {self.repo_id} failed: {describe(error, self.token)} Training goes on.")
        self.missing.update(sources)
        self._impatient_until = time.monotonic() + IMPATIENT

    def _commit(self, files: Mapping[str, Path], message: str) -> CommitInfo:
        # One commit, where `upload_folder` may make several: what is on the Hub is all of one step
        if not self.created:
            self.create_repo()
        try:
            stale = self._stale(files)
        except RevisionNotFoundError:
            self._api.create_branch(self.repo_id, branch=self.revision, token=self.token, exist_ok=True)
            stale = self._stale(files)
        except RepositoryNotFoundError:
            self.created = False
            raise
        operations = [CommitOperationAdd(path, file) for path, file in files.items()]
        return self._api.create_commit(
            self.repo_id,
            [*operations, *(CommitOperationDelete(path) for path in stale)],
            commit_message=message,
            token=self.token,
            revision=self.revision,
        )

    def _stale(self, files: Mapping[str, Path]) -> list[str]:
        """Files on the Hub of checkpoints that are replaced, and have no such files any more."""
        there = self._api.list_repo_files(self.repo_id, revision=self.revision, token=self.token)
        replaced = {part_of(path) for path in files} - {"."}
        return [path for path in there if part_of(path) in replaced and path not in files]

    def wait(self):
        """Waits for all uploads."""
        if self._last is not None:
            self._last.result()

    def report(self):
        """Tells, once, what is missing on the Hub and the commands that upload it."""
        commands = []
        for part, source in self.missing.items():
            if source.is_dir():  # a checkpoint may have had to make room
                where = (source, ".", EXCLUDED) if part == "." else (source, part, EXCLUDED_OF_CHECKPOINT)
                commands.append(upload_command(self.repo_id, *where, self.private, self.revision))
        text = "\n".join(f"    {command}" for command in commands)
        if commands and text != self._told:
            logger.warning(
                f"Not everything reached {self.repo_id} on the Hub. It is all here, in {self.folder}; this uploads it (`hf auth "
                f"login` first if your token was refused):\n{text}"
            )
        self._told = text


def _stage(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Holds files as they are: training goes on to write, and to delete, while they are read."""
    staged = {}
    for path, file in files.items():
        staged[path] = folder / path
        staged[path].parent.mkdir(parents=True, exist_ok=True)
        if part_of(path) == ".":
            shutil.copyfile(file, staged[path])
            continue
        try:  # files of a checkpoint are large, and deleted but never changed
            os.link(file, staged[path])
        except OSError:
            shutil.copyfile(file, staged[path])
    return staged
