"""Live crops that the sibling embeds as well, and a plan that they give away."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from prometheus_client import CollectorRegistry
from tritonclient import grpc as tritonclient

from arcface_client.backends import shadow as module
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.shadow import QUEUE_CROPS
from arcface_client.backends.triton import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import InputError
from arcface_client.failover.intervals import Rhythm
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import NAME, ONNX, PLAN, QUICK, serving, tiny_embeddings
from support.tiny import tiny_serving_graph, write_tiny_repository

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
    flags = ("--model-control-mode=explicit", "--load-model=*")
    with LocalTriton(repository, flags=flags, stop_timeout_s=1) as server:
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


def shadow(embedder: EmbeddingBackend) -> dict[str, Any]:
    figures = embedder.diagnostics().shadow
    assert figures is not None
    return figures


def wait_for_comparisons(embedder: EmbeddingBackend, crops: int) -> dict[str, Any]:
    wait_until(lambda: sum(shadow(embedder)["crops"].values()) >= crops)
    return shadow(embedder)


def test_figures_are_kept_in_diagnostics_and_metrics(quirky: LocalTriton, plain: Crops) -> None:
    registry = CollectorRegistry()
    with TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0, registry=registry) as embedder:
        embedder.encode(plain[:40])
        figures = wait_for_comparisons(embedder, 40)
        assert figures["crops"] == {"compared": 40, "dropped": 0, "failed": 0}
        (drift,) = figures["drift"].values()
        assert drift["count"] == 40
        assert drift["max"] < 1e-9
        plan = f"{PLAN}:1 at {quirky.grpc_url}"
        assert registry.get_sample_value("arcface_client_shadow_crops_total", {"result": "compared"}) == 40
        name = "arcface_client_shadow_drift_bucket"
        assert registry.get_sample_value(name, {"candidate": plan, "le": "0.001"}) == 40


def test_the_share_of_the_crops_is_the_rate_whatever_the_calls(quirky: LocalTriton, plain: Crops) -> None:
    with TritonBackend(quirky.grpc_url, NAME, shadow_rate=0.3) as embedder:
        for count in (1, 1, 1, 7, 20, 10):
            embedder.encode(plain[:count])
        assert wait_for_comparisons(embedder, 12)["crops"]["compared"] == 12


def test_it_is_off_by_default(quirky: LocalTriton, plain: Crops) -> None:
    with TritonBackend(quirky.grpc_url, NAME) as embedder:
        embedder.encode(plain)
        assert embedder.diagnostics().shadow is None


def test_what_does_not_fit_into_the_queue_is_dropped(quirky: LocalTriton, plain: Crops) -> None:
    many = np.concatenate([plain] * 4)
    with TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0) as embedder:
        embedder.encode(many)
        assert wait_for_comparisons(embedder, len(many))["crops"] == {
            "compared": QUEUE_CROPS,
            "dropped": len(many) - QUEUE_CROPS,
            "failed": 0,
        }


def test_what_the_caller_does_with_his_arrays_afterwards_is_no_drift(
    quirky: LocalTriton, plain: Crops
) -> None:
    with TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0) as embedder:
        mine = plain[:50].copy()
        embeddings = embedder.encode(mine)
        mine[:] = 0
        embeddings[:] = 0
        (drift,) = wait_for_comparisons(embedder, 50)["drift"].values()
        assert drift["max"] < 1e-9


def test_a_sibling_that_fails_is_counted_and_disturbs_nobody(quirky: LocalTriton, plain: Crops) -> None:
    with (
        tritonclient.InferenceServerClient(quirky.grpc_url) as control,
        TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0, rhythm=Rhythm(recheck_s=60)) as embedder,
    ):
        embedder.ensure_ready()
        control.unload_model(ONNX)
        try:
            wait_until(lambda: not control.is_model_ready(ONNX))
            _, served = embedder.encode(plain[:5], return_source=True)
            assert served.sources[0].model == PLAN
            crops = wait_for_comparisons(embedder, 5)["crops"]
            assert crops == {"compared": 0, "dropped": 0, "failed": 5}
        finally:
            control.load_model(ONNX)


def test_what_a_sibling_did_before_it_failed_is_compared(tmp_path: Path, plain: Crops, odd: Crops) -> None:
    write_tiny_repository(tmp_path, PLAN)
    write_tiny_repository(tmp_path, ONNX, poison=True)
    with (
        LocalTriton(tmp_path, stop_timeout_s=1) as server,
        TritonBackend(server.grpc_url, NAME, shadow_rate=1.0) as embedder,
    ):
        embedder.encode(np.concatenate([plain[:36], odd[36:40]]))  # in batches of 32
        figures = wait_for_comparisons(embedder, 40)
    assert figures["crops"] == {"compared": 32, "dropped": 0, "failed": 8}
    (drift,) = figures["drift"].values()
    assert drift["count"] == 32
    assert drift["max"] < 1e-9


def test_what_nobody_expected_is_logged_and_counted_and_it_goes_on(
    quirky: LocalTriton, plain: Crops, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*embeddings: Embeddings) -> Any:
        monkeypatch.undo()
        raise MemoryError("nothing is left")

    with TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0) as embedder:
        monkeypatch.setattr(module, "drifts", no_memory)
        embedder.encode(plain[:5])
        wait_for_comparisons(embedder, 5)
        embedder.encode(plain[:7])
        crops = wait_for_comparisons(embedder, 12)["crops"]
        assert crops == {"compared": 7, "dropped": 0, "failed": 5}
    assert "arcface-shadow failed; it goes on" in caplog.text


def test_an_embedder_that_nobody_closes_ends_its_threads(quirky: LocalTriton, plain: Crops) -> None:
    others = set(threading.enumerate())
    embedder = TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0, rhythm=QUICK)
    embedder.encode(plain[:5])
    wait_for_comparisons(embedder, 5)
    threads = [thread for thread in set(threading.enumerate()) - others if "arcface" in thread.name]
    assert {thread.name for thread in threads} == {"arcface-recheck", "arcface-liveness", "arcface-shadow"}
    del embedder
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))


def test_one_odd_crop_does_not_put_a_plan_out(quirky: LocalTriton, plain: Crops, odd: Crops) -> None:
    with TritonBackend(quirky.grpc_url, NAME, shadow_rate=1.0) as embedder:
        embedder.encode(np.concatenate([plain[:10], odd[:1], plain[10:20]]))
        (drift,) = wait_for_comparisons(embedder, 21)["drift"].values()
        assert drift["beyond"] == 1
        assert serving(embedder) == f"{PLAN}:1 at {quirky.grpc_url}"


def test_a_plan_that_live_crops_give_away_is_out_until_it_gets_them_right(
    quirky: LocalTriton, repository: Path, odd: Crops, truth: Embeddings
) -> None:
    url = quirky.grpc_url
    with (
        tritonclient.InferenceServerClient(url) as control,
        TritonBackend(url, NAME, shadow_rate=0.2, rhythm=QUICK) as embedder,
    ):
        wrong = embedder.encode(odd)
        assert np.abs(wrong - truth).max() > 1e-2
        wait_until(lambda: serving(embedder) == f"{ONNX}:1 at {url}")
        plan = embedder.diagnostics().candidates[0]
        assert plan.reason is not None
        assert "live crops that were compared drift up to" in plan.reason
        np.testing.assert_allclose(embedder.encode(odd), truth, atol=1e-6)

        # It is examined again and again, and still wrong.
        before = inferences(control)
        wait_until(lambda: inferences(control) >= before + 3)
        plan = embedder.diagnostics().candidates[0]
        assert "live crops that gave it away drift" in str(plan.reason)
        assert serving(embedder) == f"{ONNX}:1 at {url}"

        model = repository / PLAN / "1" / "model.onnx"
        shutil.copy(model, repository / "quirky.onnx")
        try:
            onnx.save(tiny_serving_graph(1), model)
            control.load_model(PLAN)
            wait_until(lambda: serving(embedder) == f"{PLAN}:1 at {url}")
            np.testing.assert_allclose(embedder.encode(odd), truth, atol=1e-6)
        finally:
            shutil.move(repository / "quirky.onnx", model)
            control.load_model(PLAN)


def inferences(control: Any) -> int:
    """How many requests the plan has answered."""
    (statistics,) = control.get_inference_statistics(PLAN).model_stats
    return int(statistics.inference_stats.success.count)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="expected a share from 0 to 1"):
        TritonBackend("localhost:8001", NAME, shadow_rate=rate)


def test_pins_without_a_version_are_compared_though_the_server_does_not_list_its_models(
    repository: Path, plain: Crops
) -> None:
    flags = ("--grpc-restricted-protocol=model-repository:key=value",)
    with (
        LocalTriton(repository, flags=flags, stop_timeout_s=1) as server,
        TritonBackend(server.grpc_url, NAME, [PLAN, ONNX], shadow_rate=1.0) as embedder,
    ):
        embedder.encode(plain[:8])
        figures = wait_for_comparisons(embedder, 8)
    assert figures["crops"] == {"compared": 8, "dropped": 0, "failed": 0}
