"""Live crops that the ONNX sibling embeds as well, and a plan that they show to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tritonclient import grpc as tritonclient

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.backends.shadow import AMONG, QUEUE_CROPS, ShadowBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import InputError
from arcface_client.failover.replica import Intervals
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import EXPLICIT, NAME, ONNX, PLAN, QUICK, serving, tiny_embeddings
from support.tiny import write_tiny_repository

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that is right on golden crops, and wrong on crops whose first byte is 255."""
    path = tmp_path_factory.mktemp("quirky")
    write_tiny_repository(path, PLAN, quirk=1.0)
    write_tiny_repository(path, ONNX)
    return path


@pytest.fixture(scope="module")
def quirky(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository, flags=EXPLICIT, stop_timeout_s=1) as server:
        yield server


@pytest.fixture(scope="module")
def plain(crops: Crops) -> Crops:
    return np.minimum(crops, 254)


@pytest.fixture(scope="module")
def odd(plain: Crops) -> Crops:
    odd = plain.copy()
    odd[:, 0, 0, 0] = 255
    return odd


@pytest.fixture(scope="module")
def truth(odd: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return tiny_embeddings(tmp_path_factory.mktemp("truth"), odd)


def shadowed(
    server: LocalTriton, rate: float = 1.0, *, registry: Any = None, intervals: Intervals = QUICK
) -> ShadowBackend:
    primary = TritonBackend(server.grpc_url, NAME, intervals=intervals)
    shadow = TritonBackend(server.grpc_url, NAME, [ONNX], intervals=intervals)
    return ShadowBackend(primary, shadow, rate, 1e-3, registry=registry)


def figures(embedder: EmbeddingBackend, crops: int) -> dict[str, Any]:
    """What was found, once so many crops were dealt with."""

    def found() -> dict[str, Any]:
        report = embedder.diagnostics().shadow
        assert report is not None
        return report

    wait_until(lambda: sum(found()["crops"].values()) >= crops)
    return found()


def test_the_drift_is_in_diagnostics_and_metrics(quirky: LocalTriton, plain: Crops) -> None:
    registry = CollectorRegistry()
    with shadowed(quirky, registry=registry) as embedder:
        embedder.ensure_ready()
        embedder.encode(plain[:40])
        report = figures(embedder, 40)
        assert report["crops"] == {"compared": 40, "dropped": 0, "failed": 0}
        plan = f"{PLAN}:1 at {quirky.grpc_url}"
        drift = report["drift"][plan]
        assert (drift["count"], drift["beyond"]) == (40, 0)
        assert drift["max"] < 1e-9
        assert registry.get_sample_value("arcface_client_shadow_crops_total", {"result": "compared"}) == 40
        name = "arcface_client_shadow_drift_bucket"
        assert registry.get_sample_value(name, {"candidate": plan, "le": "0.001"}) == 40
        labels = {"backend": "triton", "model": PLAN, "version": "1", "where": quirky.grpc_url}
        assert registry.get_sample_value("arcface_client_faces_total", labels) == 40
    assert not list(registry.collect())


def test_about_the_rates_share_of_the_crops_is_compared(quirky: LocalTriton, plain: Crops) -> None:
    with shadowed(quirky, 0.5) as embedder:
        for crop in plain:
            embedder.encode([crop])
        wait_until(lambda: (embedder.diagnostics().shadow or {})["crops"]["compared"] > 25)
        assert figures(embedder, 1)["crops"]["compared"] < 75


def test_what_does_not_fit_into_the_queue_is_dropped(quirky: LocalTriton, plain: Crops) -> None:
    many = np.concatenate([plain] * 4)
    with shadowed(quirky) as embedder:
        embedder.encode(many)
        assert figures(embedder, len(many))["crops"] == {
            "compared": QUEUE_CROPS,
            "dropped": len(many) - QUEUE_CROPS,
            "failed": 0,
        }


def test_what_the_caller_does_with_the_arrays_afterwards_does_not_count(
    quirky: LocalTriton, plain: Crops
) -> None:
    with shadowed(quirky) as embedder:
        mine = plain[:50].copy()
        embeddings = embedder.encode(mine)
        mine[:] = 0
        embeddings[:] = 0
        (drift,) = figures(embedder, 50)["drift"].values()
        assert drift["max"] < 1e-9


def test_a_sibling_that_fails_is_counted_and_does_not_disturb_calls(
    quirky: LocalTriton, plain: Crops
) -> None:
    with (
        tritonclient.InferenceServerClient(quirky.grpc_url) as control,
        shadowed(quirky, intervals=Intervals(recheck_s=60)) as embedder,
    ):
        embedder.ensure_ready()
        control.unload_model(ONNX)
        try:
            wait_until(lambda: not control.is_model_ready(ONNX))
            _, served = embedder.encode(plain[:5], return_source=True)
            assert served.sources[0].model == PLAN
            assert figures(embedder, 5)["crops"] == {"compared": 0, "dropped": 0, "failed": 5}
        finally:
            control.load_model(ONNX)


def test_a_plan_that_live_crops_show_to_be_wrong_is_out_until_ensure_ready(
    quirky: LocalTriton, plain: Crops, odd: Crops, truth: Embeddings
) -> None:
    plan, onnx = f"{PLAN}:1 at {quirky.grpc_url}", f"{ONNX}:1 at {quirky.grpc_url}"
    with shadowed(quirky) as embedder:
        # Single crops may be no faces, and so may two among many others.
        embedder.encode(np.concatenate([plain[:10], odd[:2], plain[10:20]]))
        (drift,) = figures(embedder, 22)["drift"].values()
        assert drift["beyond"] == 2
        done = 22
        while done < 22 + AMONG:
            embedder.encode(plain)
            done += len(plain)
            figures(embedder, done)
        assert serving(embedder) == plan
        wrong = embedder.encode(odd[:20])
        assert np.abs(wrong - truth[:20]).max() > 1e-2
        wait_until(lambda: serving(embedder) == onnx)
        reason = embedder.diagnostics().candidates[0].reason
        assert reason is not None and "live crops that were compared drift up to" in reason
        embeddings, served = embedder.encode(odd, return_source=True)
        np.testing.assert_allclose(embeddings, truth, atol=1e-6)
        assert served.refusals[0].candidate == plan
        embedder.ensure_ready()
        assert serving(embedder) == plan


def test_the_rate_must_be_a_share() -> None:
    with TritonBackend("localhost:1") as one, pytest.raises(InputError, match="expected a share from 0 to 1"):
        ShadowBackend(one, one, float("nan"), 1e-3)
