from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from arcface_builder import faces
from arcface_builder.errors import BlindGateError, ParityError, ServedModelError
from arcface_builder.graph import session
from arcface_builder.plans.divergence import explain_drift
from arcface_builder.plans.gate import Verdict, judge, objection_to
from arcface_builder.plans.layer_errors import worst_layer
from arcface_builder.plans.precision import typed_graph
from arcface_builder.plans.standard import ANOTHER_MODEL, Standard, another_model, gate_crops, standard_of
from arcface_builder.reference import ReferenceEmbedder
from arcface_builder.source_model import SourceModel
from arcface_builder.store import Parity
from arcface_client.contract import INPUT_NAME, Crops, Embeddings
from arcface_client.faults import FAULTS
from arcface_client.runtimes.base import Embed
from engines import VERDICT
from photograph import face_crops


def embedder(graph: bytes) -> Embed:
    loaded = session(graph)

    def embed(crops: Crops) -> Embeddings:
        return loaded.run(None, {INPUT_NAME: crops})[0]  # type: ignore[no-any-return]

    return embed


@pytest.fixture(scope="module")
def crops() -> Crops:
    return gate_crops(face_crops())


@pytest.fixture(scope="module")
def standard(small_source: SourceModel, small_graph: bytes, crops: Crops) -> Standard:
    another = embedder(another_model(small_graph))
    return standard_of(ReferenceEmbedder(small_source).embed, embedder(small_graph), another, crops)


@pytest.fixture(scope="module")
def verdict_of(standard: Standard) -> Callable[[Embed], Verdict]:
    return lambda plan: judge(plan, standard, max_batch_size=32)


def test_an_fp16_plan_passes(verdict_of: Callable[[Embed], Verdict], small_graph: bytes) -> None:
    verdict = verdict_of(embedder(typed_graph(small_graph, "fp16")))

    verdict.check()
    assert 0 < verdict.largest_drift_cosine < 1e-4
    assert verdict.source_to_onnx < 1e-6
    assert verdict.between_batches < 1e-5
    assert (verdict.crops, verdict.batch_sizes) == (256, (1, 4, 16, 32))
    assert all(drift > 0.001 for drift in verdict.controls.values())
    assert set(verdict.controls) == {
        "red and blue swapped",
        "pixels normalised twice",
        "another image",
        ANOTHER_MODEL,
    }


def swapped(embed: Embed) -> Embed:
    return lambda crops: embed(np.ascontiguousarray(crops[..., ::-1]))


def one_place_wrong(embed: Embed) -> Embed:
    """The last place of a full batch embeds its neighbour, as a wrong grid size makes it."""

    def wrong(crops: Crops) -> Embeddings:
        embeddings = embed(crops)
        if len(crops) == 32:
            embeddings[31] = embeddings[30]
        return embeddings

    return wrong


def not_a_number(embed: Embed) -> Embed:
    return lambda crops: np.full_like(embed(crops), np.nan)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swapped, r"The plan drifts by 0\.\d+ from the source file; expected at most 0.001"),
        (one_place_wrong, "drifts by .* with its place in a batch"),
    ],
)
def test_a_plan_that_embeds_wrongly_is_refused(
    fault: Callable[[Embed], Embed],
    message: str,
    verdict_of: Callable[[Embed], Verdict],
    small_graph: bytes,
) -> None:
    verdict = verdict_of(fault(embedder(small_graph)))

    with pytest.raises(ParityError, match=message) as caught:
        verdict.check()
    assert not isinstance(caught.value, BlindGateError)


def test_not_a_number_never_passes(verdict_of: Callable[[Embed], Verdict], small_graph: bytes) -> None:
    with pytest.raises(ParityError):
        verdict_of(not_a_number(embedder(small_graph))).check()


def test_the_plan_of_another_model_is_refused(
    verdict_of: Callable[[Embed], Verdict], small_graph: bytes
) -> None:
    with pytest.raises(ParityError, match="The plan drifts by"):
        verdict_of(embedder(another_model(small_graph))).check()


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


def test_int8_with_absurd_ranges_is_refused_and_its_layer_named(
    verdict_of: Callable[[Embed], Verdict], standard: Standard, small_graph: bytes
) -> None:
    model = onnx.load_model_from_string(
        typed_graph(small_graph, "int8", calibration=face_crops(), strongly_typed=False)
    )
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "bn2a_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(40), scale.name))
    absurd = model.SerializeToString()

    with pytest.raises(ParityError, match="The plan drifts by"):
        verdict_of(embedder(absurd)).check()
    assert re.fullmatch(
        r"the graph itself drifts by 0\.\d+ in ONNX Runtime; "
        r"the first layer that diverges is conv2: relative error 0\.\d+, usual up to 0\.1",
        explained(small_graph, absurd, standard, "int8"),
    )


def explained(serving_graph: bytes, typed: bytes, standard: Standard, precision: str) -> str:
    return explain_drift(
        serving_graph,
        typed,
        standard,
        precision=precision,
        max_drift_cosine=0.001,
        watch=lambda: "its layers are ...",
    )


def test_a_graph_that_passes_the_gate_itself_is_called_sound(standard: Standard, small_graph: bytes) -> None:
    typed = typed_graph(small_graph, "fp16")

    assert explained(small_graph, typed, standard, "fp16") == (
        "its graph is sound in ONNX Runtime, so TensorRT's build is at fault: its layers are ..."
    )


def test_a_graph_that_drifts_by_many_usual_errors_is_not_called_sound(
    standard: Standard, small_graph: bytes
) -> None:
    smooth = faces.face_like(32, seed=3)
    few = replace(standard, crops=smooth, from_source=embedder(small_graph)(smooth))
    typed = typed_graph(small_graph, "int8", calibration=smooth)

    # With the oldest ONNX Runtime, one layer's error is just above the usual.
    assert re.fullmatch(
        r"the graph itself drifts by 0\.00\d+ in ONNX Runtime; "
        r"(no layer's relative error passes the usual 0\.1; the largest is that of conv\d, 0\.0\d+"
        r"|the first layer that diverges is conv\d: relative error 0\.1\d, usual up to 0\.1)",
        explained(small_graph, typed, few, "int8"),
    )


def test_where_no_layers_error_is_unusual_the_largest_is_named() -> None:
    assert worst_layer({"conv1": 0.01, "conv2": 0.05, "fc": 0.02}, 0.1) == (
        "no layer's relative error passes the usual 0.1; the largest is that of conv2, 0.05"
    )


def test_the_layer_where_not_a_number_comes_from_is_named(standard: Standard, small_graph: bytes) -> None:
    model = onnx.load_model_from_string(typed_graph(small_graph, "fp16"))
    node = next(node for node in model.graph.node if node.name == "conv4")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(np.inf), weight.name))

    assert explained(small_graph, model.SerializeToString(), standard, "fp16") == (
        "the graph itself drifts by nan in ONNX Runtime; "
        "the first layer that diverges is conv4: relative error nan, usual up to 0.01"
    )


@pytest.mark.parametrize(
    ("precision", "clause"),
    [
        (
            "bf16",
            r"ONNX Runtime cannot run its graph \(\[ONNXRuntimeError\] : 9 : .*\); its layers are \.\.\.",
        ),
        ("tf32", r"which TensorRT alone rounds to, its layers are \.\.\."),
    ],
)
def test_of_a_precision_that_onnx_runtime_does_not_compute_in_the_plans_own_layers_are_told(
    precision: str, clause: str, standard: Standard, small_graph: bytes
) -> None:
    typed = typed_graph(small_graph, precision)

    assert re.fullmatch(clause, explained(small_graph, typed, standard, precision))


def test_all_layers_of_a_graph_are_looked_at_on_two_crops(
    standard: Standard, small_graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    run = onnxruntime.InferenceSession.run

    def counting(
        self: onnxruntime.InferenceSession, names: Sequence[str] | None, feed: dict[str, Crops]
    ) -> object:
        arrays = run(self, names, feed)
        seen.append((len(arrays), len(feed[INPUT_NAME])))
        return arrays

    typed = typed_graph(small_graph, "int8", calibration=face_crops())
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counting)
    explained(small_graph, typed, standard, "int8")

    assert seen[:-2] == [(1, 8)] * 32
    assert [crops for _, crops in seen[-2:]] == [2, 2]
    assert seen[-1][0] > 5


def test_a_gate_that_sees_no_difference_is_declared_blind_before_there_is_a_plan(
    small_graph: bytes, crops: Crops
) -> None:
    embed = embedder(small_graph)

    with pytest.raises(BlindGateError, match="The gate is blind: another model makes a drift of"):
        standard_of(embed, embed, embed, crops).check(0.001)


def test_a_model_that_embeds_all_alike_makes_the_gate_blind(crops: Crops) -> None:
    verdict = judge(alike, standard_of(alike, alike, alike, crops), max_batch_size=8)

    with pytest.raises(BlindGateError):
        verdict.check()


def alike(crops: Crops) -> Embeddings:
    return np.full((len(crops), 512), 512**-0.5, np.float32)


def test_too_few_crops_are_refused(crops: Crops) -> None:
    with pytest.raises(ParityError, match="The gate has 10 crops; expected 256 or more"):
        standard_of(alike, alike, alike, crops[:10])


def test_generated_crops_fill_up_real_ones(crops: Crops) -> None:
    assert crops.shape == (256, 112, 112, 3)
    assert np.array_equal(crops[:6], face_crops())
    assert len(gate_crops(np.zeros((300, 112, 112, 3), np.uint8))) == 300


@pytest.mark.parametrize(
    ("changes", "allowed", "objection"),
    [
        ({}, 0.001, None),
        ({}, 0.0002, "The plan drifts by 0.0003 from the source file"),
        ({"between_batches": 0.0004}, 0.0003, "with its place in a batch"),
        ({"source_to_onnx": 0.002}, 0.001, "The served ONNX model drifts by 0.002"),
        ({}, 0.2, "The gate is blind: red and blue swapped makes a drift of 0.1"),
        ({"crops": 1}, 0.001, "judged on too few crops, 1; expected 256 or more"),
        ({"controls": {}}, 0.001, "without controls of the gate: another image, another model, pixels"),
        ({"controls": dict.fromkeys(FAULTS, 0.1)}, 0.001, "without controls of the gate: another model."),
        ({"largest_drift_cosine": float("nan")}, 0.001, "The plan drifts by nan"),
    ],
)
def test_a_recorded_verdict_is_held_against_another_tolerance(
    changes: dict[str, Any], allowed: float, objection: str | None
) -> None:
    verdict = replace(VERDICT, **changes)

    found = objection_to(verdict.to_parity(), allowed)

    assert (found is None) == (objection is None)
    assert objection is None or objection in str(found)


def test_a_record_that_lacks_what_the_gate_measured_is_objected_to() -> None:
    bare = Parity(largest_drift_cosine=1e-5, max_drift_cosine=1e-3, crops=256, compared_with="source file")

    assert "lacks batch_sizes, between_batches, controls" in str(objection_to(bare, 0.001))
