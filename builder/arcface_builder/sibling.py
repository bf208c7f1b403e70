"""Compile for a runtime that reads ONNX: check the model's own file there, or one in int8, and add it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from arcface_client.contract import Progress, no_progress
from arcface_client.errors import require
from arcface_client.models.embedding_space import INT8
from arcface_client.models.files import sha256_of
from arcface_client.models.golden import golden_crops
from arcface_client.models.manifest import MODEL_FILE, Golden, ModelFile, manifest_path
from arcface_client.models.naming import sibling_model
from arcface_client.models.plan_manifest import SiblingManifest
from arcface_client.models.repository import LocalOnnx
from arcface_client.runtimes.base import Embed, Runtime

from .check.accuracy import ReferenceEmbeddings
from .check.speed import faces_per_s
from .check.task import BY_TASK, TaskGate
from .errors import ParityError, RepositoryError
from .graph.quantise import QuantisedGraph
from .repository.config import (
    CONFIG_FILE,
    DEFAULT_PLAN_INSTANCES,
    PYTHON_FILE,
    SERVER_CONFIG_FILE,
    config_text,
    cudnn_config,
    openvino_config,
    openvino_server_config,
    read_config,
)
from .repository.publish import ModelRepository, now, tool_versions

_BATCHES: Final = (1, 8, 32)
"""Batch sizes of the accuracy check."""


class CheckedRuntime(Runtime, Protocol):
    """A runtime that says what it computes in.

    Attributes:
        precision: For example "bf16".
        device: The processor.
        version: The runtime's version.
    """

    precision: str
    device: str
    version: str


@dataclass(frozen=True)
class Kind:
    """A kind of sibling.

    Attributes:
        runtime: Its name, which is the sibling's suffix.
        open: Loads the staged file.
        configs: What makes each configuration, by its path in the model's folder: called with the model's
            name, D, and the number of instances.
        least_channels: What a convolution reads for int8 to pay.
        instances: How many instances, unless the user says.
        files: Further files of a version, by their name.
    """

    runtime: str
    open: Callable[[Path], CheckedRuntime]
    configs: Mapping[str, Callable[[str, int, int], Any]]
    least_channels: int = 0
    instances: int = 1
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AddedSibling:
    """A sibling's version in the repository: its file, and whether it was not there before."""

    path: Path
    is_new: bool
    manifest: SiblingManifest


def _openvino(path: Path) -> CheckedRuntime:
    module = require("arcface_client.runtimes.openvino", extra="openvino", purpose="A model for OpenVINO")
    runtime: CheckedRuntime = module.OpenVino(path)
    return runtime


def _cudnn(path: Path) -> CheckedRuntime:
    module = require("arcface_client.runtimes.cudnn.runtime", extra="cudnn", purpose="A model for cuDNN")
    runtime: CheckedRuntime = module.Cudnn(path)
    return runtime


KINDS: Final = {
    kind.runtime: kind
    for kind in (
        Kind(
            "cudnn",
            _cudnn,
            {CONFIG_FILE: cudnn_config},
            least_channels=128,  # on an H200, convolutions of 64 channels are faster in FP16
            instances=DEFAULT_PLAN_INSTANCES,
            files={
                PYTHON_FILE: "from arcface_server.backends.cudnn import TritonPythonModel  # noqa: F401\n"
            },
        ),
        Kind(
            "openvino",
            _openvino,
            {CONFIG_FILE: openvino_config, SERVER_CONFIG_FILE: openvino_server_config},
        ),
    )
}
"""By the runtime's name."""


@contextmanager
def opened(kind: Kind, graph: bytes) -> Iterator[Embed]:
    """Open a graph's file in the runtime of a kind of sibling."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        path.write_bytes(graph)
        with closing(kind.open(path)) as runtime:
            yield runtime.embed


def compile_sibling(
    kind: Kind,
    onnx: LocalOnnx,
    repository: ModelRepository,
    reference: Callable[[], ReferenceEmbeddings],
    *,
    command: str,
    quantise: Callable[[], QuantisedGraph] | None = None,
    gate: TaskGate | None = None,
    instances: int | None = None,
    report: Progress = no_progress,
) -> AddedSibling:
    """Check the ONNX model in another runtime, and add it to the repository as that runtime's sibling.

    Args:
        kind: The kind of sibling.
        onnx: The ONNX model.
        repository: Where both are.
        reference: Computes what the embeddings must be, which takes a while.
        command: The command line that makes it again, for the manifest.
        quantise: Writes the graph in int8, which takes a while; None serves the ONNX model's own file.
        gate: Judges a model in int8 by its recognition; None judges it by its drift.
        instances: Batches that Triton runs side by side; None leaves the configurations as they are, or is
            the kind's number.
        report: Called with each stage.

    Raises:
        ParityError: The embeddings are not those of the source model, or recognise people less well; nothing
            was published.
        DeploymentError: The runtime cannot run the model on this machine.
        MissingExtraError: The runtime is not installed, or too old.
        RepositoryError: The version is there already, of another file, or it cannot be written.
    """
    model, version = sibling_model(onnx.name, kind.runtime), onnx.version
    record = manifest_path(repository.root, model, version)
    path = repository.root / model / str(version) / MODEL_FILE
    there = SiblingManifest.read(record) if path.is_file() and record.is_file() else None
    if path.is_file():
        expected = onnx.sha256 if there is None else there.model_file.sha256
        if (sha256 := sha256_of(path)) != expected:
            raise RepositoryError(
                f"{path} has SHA-256 {sha256:.12}..., and {onnx.model} version {version} has "
                f"{expected:.12}... A published version is never changed: build the next one."
            )
    with repository.staging() as staged:
        file = staged / MODEL_FILE
        manifest = there or _checked(kind, onnx, file, reference, command, quantise, gate, report)
        with repository.lock():
            if there is None and path.is_file() and record.is_file():
                raise RepositoryError(f"{path} was added by another command meanwhile; it stays as it is.")
            configs = {}
            for name, make in kind.configs.items():
                old = read_config(repository.root / model / name)
                config = make(model, onnx.manifest.embedding_dim, instances or kind.instances)
                if old is None or (instances and config != old):
                    configs[name] = config_text(config)
            manifests = {} if there else {record: (MODEL_FILE, manifest.to_json())}
            repository.put(staged, path.parent, manifests=manifests, configs=configs)
    return AddedSibling(path, there is None, manifest)


def _checked(
    kind: Kind,
    onnx: LocalOnnx,
    path: Path,
    reference: Callable[[], ReferenceEmbeddings],
    command: str,
    quantise: Callable[[], QuantisedGraph] | None,
    gate: TaskGate | None,
    report: Progress,
) -> SiblingManifest:
    """Copy the ONNX model's file or quantise it, and compare what the runtime makes of it with the source."""
    graph = quantise() if quantise else None
    if graph is None:
        shutil.copyfile(onnx.path, path)
    else:
        path.write_bytes(graph.content)
    for name, text in kind.files.items():
        path.with_name(name).write_text(text, encoding="utf-8")
    report(f"Loading it with {kind.runtime}", None)
    with closing(kind.open(path)) as runtime:
        precision = graph.precision if graph else runtime.precision
        report("Comparing the ONNX model with its source", None)
        expected = reference()
        report(f"Comparing it in {precision} with its source", None)
        accuracy = expected.compare(runtime.embed, _BATCHES)
        golden = Golden.of(runtime.embed(golden_crops())) if precision == INT8 else None
        try:
            accuracy.check(f"model in {kind.runtime}", by_task=gate is not None)
            losses = gate.check(onnx.path, runtime.embed, report) if gate else ()
        except ParityError as error:
            hint = f" {BY_TASK}" if precision == INT8 and gate is None else ""
            raise ParityError(f"{error} Nothing was published.{hint}") from error
        speed = faces_per_s(runtime)
    return SiblingManifest(
        model=sibling_model(onnx.name, kind.runtime),
        version=onnx.version,
        created=now(),
        runtime=kind.runtime,
        runtime_version=runtime.version,
        device=runtime.device,
        precision=precision,
        quantised=graph.convolutions if graph else (),
        calibration_sha256=graph.calibration_sha256 if graph else None,
        golden=golden,
        onnx_sha256=onnx.sha256,
        model_file=ModelFile(name=MODEL_FILE, bytes=path.stat().st_size, sha256=sha256_of(path)),
        parity=accuracy.parity(losses),
        faces_per_s=speed,
        rebuild_command=command,
        tools=tool_versions(),
    )
