from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcface_client.contract import CROP_SHAPE
from arcface_client.errors import InputError
from arcface_client.triton.embed_request import Deadline, EmbedRequest


@pytest.mark.parametrize("timeout_s", ["1", 0, -1, math.nan, True])
def test_a_timeout_must_be_positive(timeout_s: Any) -> None:
    with pytest.raises(InputError, match="expected a number of seconds above 0"):
        Deadline(timeout_s)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 9))
def test_parts_are_exactly_the_missing_rows_in_order(done: list[bool], size: int) -> None:
    request = EmbedRequest(np.zeros((len(done), *CROP_SHAPE), np.uint8), Deadline(None))
    request.set_width(4)
    for row, is_done in enumerate(done):
        if is_done:
            request.fill(slice(row, row + 1), np.full((1, 4), row, np.float32))
    missing = [row for row, is_done in enumerate(done) if not is_done]

    parts = request.parts(size)

    assert request.missing == len(missing)
    assert [row for part in parts for row in range(part.start, part.stop)] == missing
    assert all(0 < part.stop - part.start <= size for part in parts)

    for part in parts:
        request.fill(
            part, np.arange(part.start, part.stop, dtype=np.float32)[:, np.newaxis].repeat(4, axis=1)
        )
    assert request.missing == 0
    assert request.parts(size) == []
    np.testing.assert_array_equal(request.embeddings[:, 0], np.arange(len(done)))
