from __future__ import annotations

import pytest

from arcface_builder.errors import OptionError
from arcface_builder.plans.settings import build_options
from arcface_client.tensorrt_settings import load_tensorrt_settings


def test_the_settings_are_what_is_built() -> None:
    options = build_options(load_tensorrt_settings(environment={"ARCFACE_TENSORRT_MAX_BATCH_SIZE": "16"}))

    assert (options.precision, options.max_batch_size, options.tuned_for) == ("fp16", 16, 16)


def test_an_unknown_precision_of_the_environment_is_refused() -> None:
    settings = load_tensorrt_settings(environment={"ARCFACE_TENSORRT_PRECISION": "fp8"})

    with pytest.raises(OptionError, match="Precision 'fp8' is unknown"):
        build_options(settings)
