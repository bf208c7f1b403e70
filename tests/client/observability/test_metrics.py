from __future__ import annotations

import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.errors import InputError
from arcface_client.observability.diagnostics import CandidateReport, Served, Source
from arcface_client.observability.metrics import Metrics, PrometheusExporter
from support.fake_triton import FakeTriton, served

PLAN = Source("triton", "arcface_trt", 3, "localhost:8001", 30)
HERE = Source("onnxruntime", "arcface_onnx", None, "this process", 2)


CROP = np.zeros((112, 112, 3), np.uint8)


def filled() -> Metrics:
    metrics = Metrics()
    metrics.served(Served((PLAN,)), 0.004)
    metrics.served(Served((PLAN, HERE)), 99.0)
    metrics.fell_back("ServerUnavailableError")
    metrics.failed(InputError("no crop"))
    return metrics


def test_prometheus_reads_the_counters_when_it_scrapes() -> None:
    registry = CollectorRegistry()
    candidate = CandidateReport(candidate="arcface_trt:3 at localhost:8001", state="failing", drift=0.0005)
    exporter = PrometheusExporter(filled(), lambda: [candidate], registry)
    text = generate_latest(registry).decode()
    labels = 'backend="triton",model="arcface_trt",version="3",where="localhost:8001"'
    assert f"arcface_client_calls_total{{{labels}}} 2.0" in text
    assert f"arcface_client_faces_total{{{labels}}} 60.0" in text
    assert 'arcface_client_fallbacks_total{reason="ServerUnavailableError"} 1.0' in text
    assert 'arcface_client_errors_total{error="InputError"} 1.0' in text
    assert 'arcface_client_call_seconds_bucket{le="0.0025"} 0.0' in text
    assert 'arcface_client_call_seconds_bucket{le="0.005"} 1.0' in text
    assert 'arcface_client_call_seconds_bucket{le="10.0"} 1.0' in text
    assert 'arcface_client_call_seconds_bucket{le="+Inf"} 2.0' in text
    assert "arcface_client_call_seconds_sum 99.004" in text
    assert "arcface_client_calls_fell_back_total 1.0" in text
    assert "arcface_client_call_seconds_count 2.0" in text
    assert 'arcface_client_candidate{candidate="arcface_trt:3 at localhost:8001",state="failing"} 1.0' in text
    assert 'arcface_client_candidate_drift{candidate="arcface_trt:3 at localhost:8001"} 0.0005' in text
    exporter.close()
    assert "arcface_client" not in generate_latest(registry).decode()


def test_two_backends_do_not_share_a_registry() -> None:
    registry = CollectorRegistry()
    exporter = PrometheusExporter(Metrics(), list, registry)
    with pytest.raises(InputError, match="already has the metrics of another backend"):
        PrometheusExporter(Metrics(), list, registry)
    exporter.close()
    PrometheusExporter(Metrics(), list, registry)


def test_a_registry_must_be_one_of_prometheus_client() -> None:
    with pytest.raises(InputError, match="registry is 5; expected a prometheus_client"):
        PrometheusExporter(Metrics(), list, 5)


def test_a_backend_counts_its_calls_and_errors_for_a_registry() -> None:
    registry = CollectorRegistry()
    fake = FakeTriton(model="fake_onnx")
    with served(fake) as url, TritonBackend(url, "fake", registry=registry) as embedder:
        embedder.ensure_ready()
        sample = registry.get_sample_value
        labels = {"backend": "triton", "model": "fake_onnx", "version": "1", "where": url}
        for _ in range(3):
            embedder.encode([CROP] * 5)
        assert sample("arcface_client_faces_total", labels) == 15
        state = {"candidate": f"fake_onnx:1 at {url}", "state": "serving"}
        assert sample("arcface_client_candidate", state) == 1
        assert sample("arcface_client_call_seconds_count") == 3


def by(faces: int) -> Served:
    return Served((Source("onnxruntime", "arcface_onnx", None, "this process", faces),))


def test_calls_at_the_same_time_add_up_in_the_throughput() -> None:
    metrics = Metrics()
    for _ in range(8):
        metrics.served(by(1), 0.1)
    assert metrics.throughput_fps == pytest.approx(80, rel=0.05)
    assert metrics.latency_ms == pytest.approx(100)


def test_a_pause_between_calls_is_not_part_of_the_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now = Metrics(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    metrics.served(by(1), 99.0)  # forgotten after 256 others
    for faces, seconds in [(8, 0.1), (32, 0.3)] * 128:
        now += 60
        metrics.served(by(faces), seconds)
    assert metrics.throughput_fps == pytest.approx(40 / 0.4)
