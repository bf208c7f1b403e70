"""One real server for all tests that only send it requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpcclient

from arcface_builder.build import build
from arcface_builder.repository.config import (
    SERVER_CONFIG_FILE,
    config_text,
    cudnn_config,
    openvino_config,
    openvino_server_config,
)
from arcface_builder.repository.plans import add_plans
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.sibling import KINDS
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import EMBEDDING_DIM
from arcface_server import LocalTriton
from support.engines import stored_plan
from support.networks import NETWORKS, ONE_CROP
from support.tiny import tiny_serving_graph, write_tiny_repository

CUDNN_ON_A_CPU = """
from types import SimpleNamespace

import numpy as np

from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server.backends import cudnn


class OnCpu(OnnxRuntime):
    max_batch_size = 8

    def __init__(self, path, **_):
        super().__init__(path)

    def start(self, batches):
        crops = np.concatenate(batches)
        return lambda: self.embed(crops)

    def embed_joined(self, batches):
        return self.start(batches)()


cudnn.require = lambda *_, **__: SimpleNamespace(Cudnn=OnCpu)


class TritonPythonModel(cudnn.TritonPythonModel):
    def initialize(self, args):
        super().initialize(args | {"model_instance_kind": "GPU"})
"""
"""The backend for cuDNN in a real Triton, with ONNX Runtime in place of a GPU."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good models of every kind beside models that cannot load."""
    folder = tmp_path_factory.mktemp("model_repository")
    write_tiny_repository(folder, versions=(1, 2))
    write_tiny_repository(folder, "patient", delay_us=300_000, poison=True)
    write_tiny_repository(folder, "pair", instances=2, work=5, delay_us=None)
    write_tiny_repository(folder, "threads", parameters={"intra_op_thread_count": "4"})
    write_tiny_repository(folder, "on_gpu", kind="KIND_GPU")
    write_tiny_repository(folder, "anywhere", kind="KIND_AUTO")
    write_tiny_repository(folder, "not_a_number", parameters={"intra_op_thread_count": "many"})
    truncated = write_tiny_repository(folder, "truncated") / "1" / "model.onnx"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    (write_tiny_repository(folder, "missing") / "1" / "model.onnx").unlink()
    foreign = tiny_serving_graph()
    foreign.graph.output[0].name = foreign.graph.node[-1].output[0] = "fc1"
    (write_tiny_repository(folder, "foreign") / "1" / "model.onnx").write_bytes(foreign.SerializeToString())
    for name, instances in (("tiny_openvino", 1), ("pair_openvino", 2)):
        file = write_tiny_repository(folder, name, versions=(2,)) / "config.pbtxt"
        file.write_text(config_text(openvino_config(name, EMBEDDING_DIM, instances)))
    merging = openvino_server_config("pair_openvino", EMBEDDING_DIM, 2)
    merging.parameters["INFERENCE_PRECISION_HINT"].string_value = "fp32"
    merging.dynamic_batching.max_queue_delay_microseconds = 300_000
    (folder / "pair_openvino/configs").mkdir()
    (folder / "pair_openvino" / SERVER_CONFIG_FILE).write_text(config_text(merging))
    fused = write_tiny_repository(folder, "tiny_cudnn")
    config = cudnn_config("tiny_cudnn", EMBEDDING_DIM, 1)
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    (fused / "config.pbtxt").write_text(config_text(config))
    for name, text in KINDS["cudnn"].files.items():
        (fused / "1" / name).write_text(text)
    fused = write_tiny_repository(folder, "fused", poison=True)
    (fused / "config.pbtxt").write_text(config_text(config).replace("tiny_cudnn", "fused"))
    (fused / "1" / "model.py").write_text(CUDNN_ON_A_CPU)
    for name, network in {"narrow": NETWORKS["192 numbers, channels last"], "single": ONE_CROP}.items():
        source = tmp_path_factory.mktemp(name) / "source.onnx"
        source.write_bytes(network.SerializeToString())
        build(OnnxFile(source, color="bgr"), name=name, repository=folder)
    plan = stored_plan(tmp_path_factory.mktemp("store"), "86")
    add_plans(ModelRepository(folder), [plan], version=1)
    return folder


@pytest.fixture(scope="session")
def server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "triton.log"


@pytest.fixture(scope="session")
def server(repository: Path, server_log: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository, stop_timeout_s=1, log_path=server_log) as server:
        yield server


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small_repository")
    write_tiny_repository(folder)
    return folder


@pytest.fixture
def client(server: LocalTriton) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        yield client
