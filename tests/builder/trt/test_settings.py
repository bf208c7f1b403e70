from __future__ import annotations

import pytest

from arcface_builder.errors import OptionError
from arcface_builder.trt.settings import build_options
from arcface_client.settings import load_tensorrt_settings


def test_the_settings_are_what_is_built() -> None:
    options = build_options(load_tensorrt_settings(environment={"ARCFACE_TENSORRT_MAX_BATCH_SIZE": "16"}))

    assert (options.precision, options.max_batch_size, options.tuned_for) == ("fp16", 16, 16)


@pytest.mark.parametrize("instances", ["0", "-3", "65", "99999999999"])
def test_instances_out_of_range_are_refused_before_anything_is_built(instances: str) -> None:
    settings = load_tensorrt_settings(environment={"ARCFACE_TENSORRT_INSTANCES": instances})

    with pytest.raises(OptionError, match=f"instances is {instances}; expected 1 to 64"):
        build_options(settings)


def test_an_unknown_precision_of_the_environment_is_refused() -> None:
    settings = load_tensorrt_settings(environment={"ARCFACE_TENSORRT_PRECISION": "fp8"})

    with pytest.raises(OptionError, match="Precision 'fp8' is unknown"):
        build_options(settings)
