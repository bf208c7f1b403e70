from __future__ import annotations

import pytest

from arcface_client.observability.meter import Meter


def test_nothing_is_known_before_the_first_call() -> None:
    meter = Meter()
    assert meter.throughput_fps is None
    assert meter.latency_ms is None


def test_the_figures_are_those_of_the_calls() -> None:
    meter = Meter()
    for faces, seconds in ((8, 0.1), (32, 0.3), (1, 0.1)):
        meter.record(faces, seconds)
    assert meter.throughput_fps == pytest.approx(41 / 0.5)
    assert meter.latency_ms == pytest.approx(100)


def test_calls_of_long_ago_are_forgotten() -> None:
    meter = Meter()
    meter.record(1, 1e6)
    for _ in range(1000):
        meter.record(1, 0.001)
    assert meter.throughput_fps == pytest.approx(1000)
