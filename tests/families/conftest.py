# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext


@pytest.fixture(autouse=True)
def small_references(monkeypatch):
    """Small sizes stand for those of a megapixel that Kontext brings its references to."""
    sizes = [(48, 80), (64, 64), (80, 48)]
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", sizes)
