from __future__ import annotations

import numpy as np

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, Crops, Embeddings
from arcface_client.errors import DeploymentError
from arcface_server.backends.requests import embed_merged

POISON = 255


class Recorder:
    """Embeds a crop as its first byte, fails on a poisoned one, and keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[Crops] = []

    def __call__(self, crops: Crops) -> Embeddings:
        self.batches.append(crops)
        first_bytes = crops[:, 0, 0, 0]
        if POISON in first_bytes:
            raise DeploymentError("poisoned")
        return np.repeat(first_bytes[:, np.newaxis].astype(np.float32), EMBEDDING_DIM, axis=1)


def crops_of(*values: int) -> Crops:
    return np.stack([np.full(CROP_SHAPE, value, np.uint8) for value in values])


def test_a_single_request_goes_into_the_model_without_a_copy() -> None:
    embed = Recorder()
    crops = crops_of(1, 2)
    (answer,) = embed_merged(embed, [crops])
    assert embed.batches[0] is crops
    assert isinstance(answer, np.ndarray)
    assert list(answer[:, 0]) == [1, 2]


def test_several_requests_are_one_run_and_each_gets_its_rows_as_a_view() -> None:
    embed = Recorder()
    answers = embed_merged(embed, [crops_of(1), crops_of(2, 3), crops_of(4)])
    assert len(embed.batches) == 1
    arrays = [answer for answer in answers if isinstance(answer, np.ndarray)]
    assert [list(array[:, 0]) for array in arrays] == [[1], [2, 3], [4]]
    assert all(array.base is not None and array.flags.c_contiguous for array in arrays)


def test_if_a_run_fails_only_the_faulty_request_gets_the_error() -> None:
    first, faulty, last = embed_merged(Recorder(), [crops_of(1), crops_of(2, POISON), crops_of(3)])
    assert isinstance(faulty, DeploymentError)
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert last[0, 0] == 3
