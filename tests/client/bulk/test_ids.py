"""A set of ids knows each of them, whatever their number and the order in which they come."""

from __future__ import annotations

import random

from arcface_client.bulk.ids import IdSet


def test_an_id_is_new_once() -> None:
    choose, known, ids = random.Random(0), set[str](), IdSet()
    for _ in range(300):
        some = [f"p{choose.randrange(8000)}/ü.jpg" for _ in range(choose.randrange(1, 60))]
        assert ids.contain(some).tolist() == [id in known for id in some]
        is_new = [id not in known and id not in some[:index] for index, id in enumerate(some)]
        assert ids.add(some).tolist() == is_new
        known.update(some)
    assert len(ids) == len(known)
