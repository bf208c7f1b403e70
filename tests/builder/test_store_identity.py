from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_builder.errors import OptionError
from arcface_builder.store import sm_of
from arcface_builder.store.identity import KEY_PARTS, key_parts, release_of
from support.engines import IDENTITY, identity

CHANGES: list[dict[str, Any]] = [
    {"model": "arcface_r50"},
    {"onnx_sha256": "0" * 64},
    {"tensorrt_version": "10.16.1.12"},
    {"sm": "89"},
    {"precision": "int8"},
    {"opt_batch_size": 16},
    {"max_batch_size": 64},
    {"settings": {"workspace_size_mb": 1024, "hardware_compatibility": False}},
    {"settings": {"workspace_size_mb": 1024}},
    {"settings": {}},
]


def test_the_name_says_what_a_person_needs_and_the_prefix_the_rest() -> None:
    assert IDENTITY.filename == "arcface_r100-fp16-sm86.plan"
    assert IDENTITY.prefix == f"trt-10.16.1.11/onnx-4c06341c33c2/batch-1-32-32/{IDENTITY.digest}"
    assert IDENTITY.key == f"engines/{IDENTITY.prefix}/{IDENTITY.filename}"
    assert IDENTITY.compute_capability == "8.6"


def test_the_digest_does_not_change_from_one_version_of_this_project_to_the_next() -> None:
    assert IDENTITY.digest == "ca0859ddb363"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ",".join(change))
def test_builds_that_differ_in_anything_lie_in_different_places(change: dict[str, Any]) -> None:
    assert identity(**change).key != IDENTITY.key


@pytest.mark.parametrize("change", [{}, {"model": "a-fp32-sm75", "precision": "int8"}, {"sm": "120"}])
def test_a_key_says_what_people_ask_for(change: dict[str, Any]) -> None:
    of = identity(**change)
    assert key_parts(of.key) == {name: getattr(of, name) for name in KEY_PARTS}
    assert key_parts(f"elsewhere/{of.key}") == {}


def test_the_order_of_settings_makes_no_difference() -> None:
    turned = dict(reversed(list(IDENTITY.settings.items())))
    assert identity(settings=turned).key == IDENTITY.key


@pytest.mark.parametrize(
    "change",
    [
        {"model": "../arcface"},
        {"model": ""},
        {"onnx_sha256": "4C" * 32},
        {"onnx_sha256": "4c06"},
        {"tensorrt_version": "10"},
        {"tensorrt_version": "10.16.1.11/.."},
        {"tensorrt_version": "10.0.0+../.."},
        {"sm": "8.6"},
        {"sm": "sm86"},
        {"sm": "086"},
        {"precision": "half"},
        {"min_batch_size": 0},
        {"opt_batch_size": 64},
        {"max_batch_size": 8},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_a_value_that_no_plan_has_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        identity(**change)


@pytest.mark.parametrize("version", ["8.5.3.1", "8.6.1", "8.6.1.post1", "10.0.0b6", "10.14.1.48.post1"])
def test_every_version_that_tensorrt_gives_itself_is_taken(version: str) -> None:
    assert identity(tensorrt_version=version).prefix.startswith(f"trt-{version}/")


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("10.16.1.11", (10, 16, 1, 11)), ("10.0.0b6", (10, 0, 0)), ("8.6.1.post1", (8, 6, 1))],
)
def test_versions_are_ordered_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert release_of(version) == numbers


@given(st.integers(1, 99), st.integers(0, 9))
def test_a_compute_capability_and_an_sm_are_one_thing_written_twice(major: int, minor: int) -> None:
    capability = f"{major}.{minor}"
    assert identity(sm=sm_of(capability)).compute_capability == capability


@pytest.mark.parametrize("capability", ["86", "8", "8.66", "08.6", "0.6", " 8.6"])
def test_a_compute_capability_that_is_none_is_refused(capability: str) -> None:
    with pytest.raises(OptionError, match=f"'{capability}' .* expected major.minor"):
        sm_of(capability)


def test_differences_are_phrases() -> None:
    other = identity(tensorrt_version="8.5.3.1", settings={"workspace_size_mb": 512})
    assert IDENTITY.differences(other) == [
        "tensorrt_version 8.5.3.1, not 10.16.1.11",
        "hardware_compatibility None, not True",
        "workspace_size_mb 512, not 1024",
    ]
