# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest

from tests.fixtures.seeing import save_detector, save_matcher, save_segmenter


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny models by their kind."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "owlv2": save_detector(folder / "owlv2"),
        "owlvit": save_detector(folder / "owlvit", "owlvit"),
        "sam": save_segmenter(folder / "sam"),
        "dinov2": save_matcher(folder / "dinov2"),
    }
