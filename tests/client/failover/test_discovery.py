from __future__ import annotations

from dataclasses import replace

import pytest
from tritonclient.grpc import service_pb2

from arcface_client.errors import ConfigError, ModelNotReadyError, NotReleasedError
from arcface_client.failover.discovery import Pin, Wanted
from arcface_client.models.release import Release
from arcface_client.triton.status import ModelStatus, Reply, Target, models_from_index

WANTED = Wanted(("one:1", "two:2"), "arcface")


def ready(name: str, *versions: int) -> list[ModelStatus]:
    return [ModelStatus(name, version, "READY", "") for version in versions]


def found(wanted: Wanted, *models: ModelStatus, urls: tuple[str, ...] = ("one:1",)) -> list[Target]:
    return sorted(
        (one for url in urls for one in wanted.sight(url, Reply(answers=True, models=models))),
        key=lambda one: wanted.preference(one, Release()),
    )


def test_plans_go_before_onnx_then_the_newest_version_then_the_order_of_urls() -> None:
    models = [*ready("arcface_onnx", 1, 10, 9), *ready("arcface_trt", 9, 10), *ready("other_trt", 11)]
    assert list(map(str, found(WANTED, *models, urls=("two:2", "one:1")))) == [
        "arcface_trt:10 at one:1",
        "arcface_trt:10 at two:2",
        "arcface_trt:9 at one:1",
        "arcface_trt:9 at two:2",
        "arcface_onnx:10 at one:1",
        "arcface_onnx:10 at two:2",
        "arcface_onnx:9 at one:1",
        "arcface_onnx:9 at two:2",
        "arcface_onnx:1 at one:1",
        "arcface_onnx:1 at two:2",
    ]


def test_the_fastest_sibling_that_a_host_can_run_goes_first() -> None:
    names = ["onnx", "openvino", "trt", "cudnn"]
    models = [*(status for name in names for status in ready(f"arcface_{name}", 1)), *ready("arcface_x", 1)]
    order = [one.model for one in found(WANTED, *models)]
    assert order == ["arcface_cudnn", "arcface_trt", "arcface_openvino", "arcface_onnx"]


def test_an_order_that_was_measured_goes_before_the_usual_one_and_pins_go_before_both() -> None:
    measured = replace(WANTED, models=("arcface_trt", "arcface_cudnn", "arcface_onnx"))
    models = [status for name in ("onnx", "cudnn", "trt") for status in ready(f"arcface_{name}", 1)]
    assert [one.model for one in found(measured, *models)] == list(measured.models)
    pinned = replace(measured, pins=(Pin("arcface_cudnn"), Pin("arcface_trt")))
    assert [one.model for one in found(pinned, *models)] == ["arcface_cudnn", "arcface_trt"]


def test_pins_override_the_order_and_everything_else_is_out() -> None:
    wanted = Wanted(("one:1",), "arcface", (Pin.parse("arcface_onnx:1"), Pin.parse("mine")))
    models = [*ready("arcface_onnx", 1, 2), *ready("arcface_trt", 1), *ready("mine", 3, 4)]
    assert list(map(str, found(wanted, *models))) == [
        "arcface_onnx:1 at one:1",
        "mine:4 at one:1",
        "mine:3 at one:1",
    ]


def test_the_newest_release_settles_the_embedding_space_though_an_older_plan_is_preferred() -> None:
    candidates = found(WANTED, *ready("arcface_trt", 1), *ready("arcface_onnx", 1, 2))
    assert str(candidates[0]) == "arcface_trt:1 at one:1"
    assert str(min(candidates, key=lambda one: WANTED.release(one, Release()))) == "arcface_onnx:2 at one:1"


def test_a_release_goes_first_older_versions_stand_in_newer_ones_wait_and_a_canary_comes_last() -> None:
    models = [*ready("arcface_onnx", 1, 2, 3, 4), *ready("arcface_trt", 1)]
    release = Release(2, canary=3, share=0.1)
    releases = {"arcface_onnx": release, "arcface_trt": release}
    seen = WANTED.sight("one:1", Reply(answers=True, models=models), releases)
    assert [str(one) for one, problem in seen.items() if problem] == ["arcface_onnx:4 at one:1"]
    order = sorted(seen, key=lambda one: WANTED.preference(one, release))
    assert [f"{one.model}:{one.version}" for one in order if not seen[one]] == [
        "arcface_onnx:2",
        "arcface_trt:1",
        "arcface_onnx:1",
        "arcface_onnx:3",
    ]


@pytest.mark.parametrize("state", ["UNAVAILABLE", "UNLOADING"])
def test_versions_that_were_unloaded_for_the_release_are_told_from_those_that_fail(state: str) -> None:
    index = service_pb2.RepositoryIndexResponse()
    index.models.add(name="arcface_onnx", version="1", state="UNAVAILABLE", reason="no memory")
    index.models.add(name="arcface_onnx", version="2", state="READY")
    index.models.add(name="arcface_onnx", version="3", state=state, reason="unloaded")
    index.models.add(name="arcface_trt", version="3", state="UNAVAILABLE", reason="unloaded")
    reply = Reply(answers=True, models=models_from_index(index))
    problems = {str(one): why for one, why in WANTED.sight("one:1", reply).items()}
    assert {name: type(why) for name, why in problems.items()} == {
        "arcface_onnx:1 at one:1": ModelNotReadyError,
        "arcface_onnx:2 at one:1": type(None),
        "arcface_onnx:3 at one:1": NotReleasedError,
        "arcface_trt:3 at one:1": ModelNotReadyError,  # no other version was loaded in its place
    }
    (problem,) = replace(WANTED, pins=(Pin("arcface_onnx", 3),)).sight("one:1", reply).values()
    assert type(problem) is ModelNotReadyError
    assert str(problem) == "it is not the release, and is unloaded"


def test_a_pinned_version_serves_though_another_one_is_released() -> None:
    wanted = Wanted(("one:1",), "arcface", (Pin.parse("arcface_onnx:2"),))
    reply = Reply(answers=True, models=ready("arcface_onnx", 1, 2))
    assert set(wanted.sight("one:1", reply, {"arcface_onnx": Release(1)}).values()) == {None}


@pytest.mark.parametrize("text", ["", ":3", "arcface:", "arcface:0", "arcface:x", "arcface:3:4", "a b"])
def test_a_pin_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a model's name"):
        Pin.parse(text)
