from __future__ import annotations

import numpy as np
import pytest

from arcface_builder.check.reference import ReferenceEmbedder
from arcface_builder.check.reference_embeddings import another_model, gate_crops, standard_of
from arcface_builder.errors import BlindGateError, ParityError, ServedModelError
from arcface_builder.source.source_model import SourceModel
from arcface_client.contract import Crops, Embeddings
from photograph import face_crops
from support.embedders import alike, embedder


def test_a_wrong_serving_graph_is_refused_before_there_is_a_plan(
    small_source: SourceModel, small_graph: bytes, crops: Crops
) -> None:
    wrong = embedder(another_model(small_graph))
    standard = standard_of(ReferenceEmbedder(small_source).embed, wrong, embedder(small_graph), crops)

    with pytest.raises(ServedModelError, match=r"The served ONNX model drifts .* Its preprocessing is at"):
        standard.check(0.001)


def test_crops_are_embedded_some_at_a_time(crops: Crops) -> None:
    sizes = set()

    def counting(crops: Crops) -> Embeddings:
        sizes.add(len(crops))
        return alike(crops)

    standard_of(counting, counting, counting, crops)

    assert sizes == {8}


def test_a_gate_that_sees_no_difference_is_declared_blind_before_there_is_a_plan(
    small_graph: bytes, crops: Crops
) -> None:
    embed = embedder(small_graph)

    with pytest.raises(BlindGateError, match="The gate is blind: another model makes a drift of"):
        standard_of(embed, embed, embed, crops).check(0.001)


def test_too_few_crops_are_refused(crops: Crops) -> None:
    with pytest.raises(ParityError, match="The gate has 10 crops; expected 256 or more"):
        standard_of(alike, alike, alike, crops[:10])


def test_generated_crops_fill_up_real_ones(crops: Crops) -> None:
    assert crops.shape == (256, 112, 112, 3)
    assert np.array_equal(crops[:6], face_crops())
    assert len(gate_crops(np.zeros((300, 112, 112, 3), np.uint8))) == 300
