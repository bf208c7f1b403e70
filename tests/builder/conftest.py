"""A synthetic network, made once for all tests."""

from __future__ import annotations

import pytest

from arcface_builder.source_model import SourceModel
from arcface_builder.sources import Synthetic


@pytest.fixture(scope="session")
def r18() -> SourceModel:
    return Synthetic("r18").load()
