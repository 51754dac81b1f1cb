# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The loopback Hub, by the real client: what the other tests rest on."""

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.conftest import TOKEN


BOB = "hf_BobMayWriteElsewhere"
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    (tmp_path / "w.safetensors").write_bytes(WEIGHTS)
    return tmp_path


@pytest.fixture
def api(hub):
    api = HfApi(token=TOKEN)
    api.create_repo("alice/lora")
    return api


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_goes_up_and_comes_down(hub, api, folder, tmp_path_factory):
    first = api.upload_folder(repo_id="alice/lora", folder_path=folder).oid
    assert hub.model("alice/lora").files() == content(folder)
    down = tmp_path_factory.mktemp("down")
    snapshot_download("alice/lora", local_dir=down, token=TOKEN, ignore_patterns=".*")
    assert {name: data for name, data in content(down).items() if not name.startswith(".")} == content(folder)
    api.upload_file(path_or_fileobj=b"b", path_in_repo="sub/a.txt", repo_id="alice/lora")
    assert len(api.list_repo_commits("alice/lora")) == 3
    with open(hf_hub_download("alice/lora", "sub/a.txt", revision=first)) as file:
        assert file.read() == "a"


def test_branches_and_tags(hub, api):
    api.create_branch("alice/lora", branch="draft")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="alice/lora", revision="draft")
    api.create_tag("alice/lora", tag="v1", revision="draft")
    names = api.list_repo_refs("alice/lora")
    assert [branch.name for branch in names.branches] == ["main", "draft"] and [tag.name for tag in names.tags] == [
        "v1"
    ]
    assert api.list_repo_files("alice/lora", revision="v1") == [".gitattributes", "x.txt"]
    assert not api.file_exists("alice/lora", "x.txt")
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files("alice/lora", revision="v2")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("alice/lora", branch="draft")


def test_rights(hub, api):
    assert api.whoami()["name"] == "alice"
    api.create_repo("alice/secret", private=True)
    bob = HfApi(token=BOB)
    for other in (bob, HfApi(token=False)):
        assert not other.repo_exists("alice/secret") and other.repo_exists("alice/lora")
    with pytest.raises(RepositoryNotFoundError):
        bob.model_info("alice/secret")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/lora")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.create_repo("alice/other")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_none").whoami()
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("alice/lora", "none.txt")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/lora")


@pytest.mark.parametrize(
    "method, path, fault",
    [
        ("PUT", "/lfs/", {"cut": True}),
        ("PUT", "/lfs/", {"status": 500}),
        ("PUT", "/lfs/", {"lost": True}),
        ("POST", "/commit/", {"cut": True}),
        ("POST", "/commit/", {"status": 503}),
        ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "1"}}),
    ],
)
def test_a_fault_for_good_leaves_the_repository_as_it_was(hub, api, folder, method, path, fault):
    before = hub.model("alice/lora").history()
    struck = hub.fail(method, path, times=-1, **fault)
    with pytest.raises(Exception):  # noqa: B017
        api.upload_folder(repo_id="alice/lora", folder_path=folder)
    assert struck.happened and hub.model("alice/lora").history() == before
    hub.faults.clear()
    api.upload_folder(repo_id="alice/lora", folder_path=folder)
    assert hub.model("alice/lora").files() == content(folder)


def test_a_download_that_is_cut_goes_on_where_it_was(hub, api, folder):
    api.upload_folder(repo_id="alice/lora", folder_path=folder)
    struck = hub.fail("GET", "/resolve/.*safetensors", times=2, cut=True)
    with open(hf_hub_download("alice/lora", "w.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    assert struck.happened == 2


def test_a_commit_on_an_old_parent_is_refused(hub, api):
    parent = api.model_info("alice/lora").sha
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="alice/lora", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="b", repo_id="alice/lora", parent_commit=parent)
