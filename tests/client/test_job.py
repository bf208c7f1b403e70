from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.embed_request import EmbedRequest


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 9))
def test_parts_are_exactly_the_missing_rows_in_order(there: list[bool], size: int) -> None:
    job = EmbedRequest(np.zeros((len(there), *CROP_SHAPE), np.uint8), Deadline(None))
    for row, done in enumerate(there):
        if done:
            job.fill(slice(row, row + 1), np.full((1, EMBEDDING_DIM), row, np.float32))

    parts = job.parts(size)

    assert [row for part in parts for row in range(part.start, part.stop)] == [
        row for row, done in enumerate(there) if not done
    ]
    assert all(0 < part.stop - part.start <= size for part in parts)
    assert job.missing == there.count(False)


def test_a_job_is_done_when_every_part_is_filled() -> None:
    job = EmbedRequest(np.zeros((5, *CROP_SHAPE), np.uint8), Deadline(None))
    for part in job.parts(2):
        job.fill(part, np.full((part.stop - part.start, EMBEDDING_DIM), part.start, np.float32))

    assert job.missing == 0
    assert job.parts(2) == []
    np.testing.assert_array_equal(job.embeddings[:, 0], [0, 0, 2, 2, 4])
