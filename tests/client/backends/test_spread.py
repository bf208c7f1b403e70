"""Calls are spread over servers of one kind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from arcface_client import get_embedding_backend
from arcface_client.models.golden import golden_crops
from arcface_server import LocalTriton

pytestmark = pytest.mark.faults  # three servers

COST_S = 0.04
CALLERS = 12

STAND_IN = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            time.sleep({COST_S})
            crops = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            features = crops.reshape(len(crops), -1)[:, :512].astype(np.float32) + 1
            rows = features / np.linalg.norm(features, axis=1, keepdims=True)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", rows)]))
        return answers
"""

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "image" data_type: TYPE_UINT8 dims: [112, 112, 3] }
output { name: "embedding" data_type: TYPE_FP32 dims: [512] }
instance_group { kind: KIND_CPU }
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalTriton]]:
    root = tmp_path_factory.mktemp("stand_in")
    (root / "even_onnx" / "1").mkdir(parents=True)
    (root / "even_onnx" / "1" / "model.py").write_text(STAND_IN)
    (root / "even_onnx" / "config.pbtxt").write_text(CONFIG)
    with ExitStack() as stack:
        yield [stack.enter_context(LocalTriton(root, stop_timeout_s=1)) for _ in range(3)]


def run(
    servers: Sequence[LocalTriton], calls: int, harm: LocalTriton | None = None
) -> tuple[float, Counter[str]]:
    """Calls a second of several callers, and which server answered how many; ``harm`` ends half way."""
    left, lock, served = list(range(calls)), threading.Lock(), Counter[str]()
    crop = golden_crops()[:1]
    with get_embedding_backend(
        "triton",
        triton_url=[server.grpc_url for server in servers],
        triton_spread=True,
        embedding_model="even",
        allow_cpu_fallback=False,
    ) as embedder:
        embedder.ensure_ready()
        expected = embedder.encode(crop)

        def caller() -> None:
            while True:
                with lock:
                    if not left:
                        return
                    number = left.pop()
                if harm is not None and number == calls // 2:
                    harm.__exit__(None, None, None)
                found, answer = embedder.encode(crop, return_source=True)
                assert (found == expected).all()
                with lock:
                    served.update(source.where for source in answer.sources)

        threads = [threading.Thread(target=caller) for _ in range(CALLERS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return calls / (time.perf_counter() - started), served


def test_three_servers_serve_nearly_three_times_as_much_as_one(servers: list[LocalTriton]) -> None:
    one, _ = run(servers[:1], 100)
    three, served = run(servers, 300)
    assert three > 2.7 * one
    assert min(served[server.grpc_url] for server in servers) > 80


def test_servers_of_one_kind_do_not_take_turns_in_the_log(
    servers: list[LocalTriton], caplog: pytest.LogCaptureFixture
) -> None:
    with get_embedding_backend(
        "triton",
        triton_url=[server.grpc_url for server in servers],
        triton_spread=True,
        triton_recheck_s=0.05,
        embedding_model="even",
        allow_cpu_fallback=False,
    ) as embedder:
        embedder.ensure_ready()
        for _ in range(20):
            embedder.encode(golden_crops()[:1])
            time.sleep(0.05)
    assert not [text for text in caplog.messages if "serves now instead" in text]


def test_a_server_that_dies_costs_no_call(servers: list[LocalTriton]) -> None:
    _, served = run(servers, 300, harm=servers[-1])
    assert sum(served.values()) == 300
