# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import pytest

from tests.fixtures.families import family_of
from tests.fixtures.pipelines import PIPELINES
from trl_focus.families import family_class


@pytest.mark.parametrize("name,prediction", [("sd15", "epsilon"), ("sd2_v", "v_prediction"), ("sdxl", "epsilon")])
def test_prediction_type_is_the_schedulers(name, prediction):
    assert family_of(name).process.prediction_type == prediction


def test_other_prediction_types_are_refused():
    pipeline = PIPELINES["sd15"]()
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample'"):
        family_class(["StableDiffusionPipeline"])(pipeline)
