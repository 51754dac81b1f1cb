# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import time
from types import SimpleNamespace

import huggingface_hub.utils._http as hub_http
import pytest
from huggingface_hub import close_session, constants, file_download

from tests.hub.loopback import LoopbackHub
from trl_focus.hub import patience


TOKEN = "hf_AliceMayWriteHere"
USERS = {TOKEN: "alice", "hf_BobMayWriteElsewhere": "bob"}


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A loopback Hub that this process takes for the Hub, with alice logged in, and no waits between attempts."""
    with LoopbackHub(USERS) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(patience, "SILENCE", 0.3)
        quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        for module in (patience, hub_http, file_download):
            monkeypatch.setattr(module, "time", quick)
        close_session()
        yield hub
        close_session()
