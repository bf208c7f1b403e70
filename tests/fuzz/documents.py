"""Parsers of settings, of manifests, and of what servers and tools say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import DecodeError
from tritonclient import grpc as triton

from arcface_builder.build import build
from arcface_builder.errors import (
    BucketError,
    OptionError,
    PlanDamagedError,
    RepositoryError,
)
from arcface_builder.release import Releases
from arcface_builder.repository.config import ServingOptions, config_text, onnx_config, read_config
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.remote import read_index
from arcface_builder.source.load import OnnxFile, located
from arcface_builder.store.local import LocalStore
from arcface_builder.store.stored import sm_of
from arcface_client.contract import OUTPUT_NAME
from arcface_client.errors import (
    ConfigError,
    ContractError,
    InputError,
    ManifestError,
    ServerError,
)
from arcface_client.failover.discovery import Pin
from arcface_client.models.golden import from_text, to_text
from arcface_client.models.manifest import Golden, ModelManifest
from arcface_client.models.normalisation import Normalisation
from arcface_client.models.plan_manifest import PlanManifest, SiblingManifest
from arcface_client.models.release import Release
from arcface_client.models.repository import LocalModels
from arcface_client.models.signature import PUBLIC_KEY, check_signature
from arcface_client.runtimes import base
from arcface_client.settings import load_pipeline_settings, load_tensorrt_settings
from arcface_client.triton import protocol
from arcface_client.triton.limits import RequestLimits
from arcface_client.triton.status import Target
from arcface_server.errors import FlagError, PerfAnalyzerError
from arcface_server.launch import restriction_flags
from arcface_server.perf.measurement import parse_report
from fuzz.parsers import Parser, Parsers, Place, of_file, of_text
from support.engines import manifest, plan_key, sibling_manifest
from support.exports import save_for_insightface

CONFIG: Final = Path(__file__).parents[2] / "config/pipeline"

PARSERS: Final = Parsers()


# Settings, and what users type.


def without_comments(name: str) -> bytes:
    """A file of settings, of which a comment would take most of the damage."""
    return re.sub(rb" *#.*", b"", (CONFIG / name).read_bytes())


@PARSERS.add()
def settings(at: Place) -> Parser:
    read = of_file(partial(load_pipeline_settings, environment={}), at.folder / "embedding.yaml")
    return Parser(without_comments("embedding.yaml"), read, (ConfigError, InputError))


@PARSERS.add()
def tensorrt_settings(at: Place) -> Parser:
    read = of_file(partial(load_tensorrt_settings, environment={}), at.folder / "arcface_tensorrt.yaml")
    return Parser(without_comments("arcface_tensorrt.yaml"), read, ConfigError)


@PARSERS.add()
def environment(at: Place) -> Parser:
    at.monkeypatch.chdir(at.folder)
    good = (
        b"ARCFACE_EMBEDDING_DEVICE=cuda:1\nARCFACE_TRITON_URL=one:8001,two:8001\n"
        b"ARCFACE_TRITON_METADATA=key=value,more=@file\nARCFACE_TRITON_REQUEST_TIMEOUT_S=10\n"
        b"ARCFACE_TRITON_TLS_ENABLED=true\nARCFACE_EMBEDDING_CANDIDATES=arcface_r100_trt:3\n"
        b"ARCFACE_TENSORRT_ENABLED=auto\nARCFACE_EMBEDDING_MAX_DRIFT_COSINE=0.01\n"
    )

    def read(data: bytes) -> object:
        lines = data.replace(b"\0", b"").decode(errors="surrogateescape").split("\n")
        return load_pipeline_settings(
            environment={line.partition("=")[0]: line.partition("=")[2] for line in lines}
        )

    return Parser(good, read, (ConfigError, InputError))


@PARSERS.add()
def secret(at: Place) -> Parser:
    file = at.folder / "token"
    return Parser(
        b"secret\n", of_file(lambda _: RequestLimits(token_file=file).headers(), file), ConfigError, False
    )


@PARSERS.add()
def admin_key(at: Place) -> Parser:
    return Parser(
        b"secret\n", of_file(lambda file: restriction_flags(file, ()), at.folder / "key"), FlagError, False
    )


TEXTS: Final[dict[str, tuple[bytes, Callable[[str], object], type[Exception]]]] = {
    "pin": (b"arcface_r100_trt:3", Pin.parse, ConfigError),
    "device": (b"cuda:1", base.read_device, InputError),
    "architecture": (b"8.6", sm_of, OptionError),
    "golden": (to_text(np.eye(8, 16, dtype=np.float32)).encode(), from_text, ValueError),
    "normalisation": (
        b"(x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375] for R, G, B",
        lambda text: str(Normalisation.parse(text)),
        InputError,
    ),
}


@PARSERS.add(*TEXTS)
def text(name: str, _: Place) -> Parser:
    good, read, errors = TEXTS[name]
    return Parser(good, of_text(read), errors)


# Manifests and the other files of a repository.


def small_model(folder: Path) -> Path:
    """A repository with a model."""
    build(OnnxFile(save_for_insightface(folder)), name="small", repository=folder / "models")
    return folder / "models"


@PARSERS.add()
def model_manifest(at: Place) -> Parser:
    def read(data: bytes) -> object:
        model = ModelManifest.parse(data, "m")
        return (
            model.embedding_space(),
            model.golden.known,
            model.embedding_dim,
            located(model.source_location),
        )

    built = ModelManifest.read(small_model(at.folder) / "small_onnx-1.manifest.json")
    short = replace(built, golden=Golden.of(np.eye(8, 16, dtype=np.float32)))  # or damage is in them alone
    return Parser(short.to_json().encode(), read, (ManifestError, OptionError, InputError))


@PARSERS.add()
def plan_manifest(_: Place) -> Parser:
    def read(data: bytes) -> object:
        plan = PlanManifest.parse(data, "m")
        return (
            plan.identity.key,
            plan.identity.profiles,
            plan.precision_class,
            plan.created_at,
            plan.to_json(),
        )

    return Parser(manifest().to_json().encode(), read, ManifestError)


@PARSERS.add()
def sibling(_: Place) -> Parser:
    def read(data: bytes) -> object:
        made = SiblingManifest.parse(data, "m")
        return made.precision_class, made.to_json()

    return Parser(sibling_manifest("small_openvino").to_json().encode(), read, ManifestError)


@PARSERS.add()
def stored_plan(at: Place) -> Parser:
    store, file = LocalStore(at.folder), at.folder / f"{plan_key().key}.json"
    file.parent.mkdir(parents=True)
    return Parser(
        manifest().to_json().encode(),
        of_file(lambda _: [(entry.labels, entry.usable_manifest()) for entry in store.entries()], file),
        PlanDamagedError,
    )


@PARSERS.add("key", "signature")
def signed(part: str, at: Place) -> Parser:
    key, content = Ed25519PrivateKey.from_private_bytes(bytes(32)), b"{}"
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good = {"key": public, "signature": key.sign(content)}
    files = {"key": at.folder / "release.pub", "signature": at.folder / "m.json.sig"}
    for name, file in files.items():
        file.write_bytes(good[name])
    at.monkeypatch.setenv(PUBLIC_KEY, str(files["key"]))
    read = of_file(lambda _: check_signature(at.folder / "m.json", content), files[part])
    return Parser(good[part], read, (ConfigError, ManifestError))


@PARSERS.add()
def index(_: Place) -> Parser:
    file = {"path": "small_onnx/1/model.onnx", "sha256": "0" * 64, "size": 1}
    return Parser(json.dumps({"files": [file]}).encode(), partial(read_index, where="index"), BucketError)


@PARSERS.add()
def releases(at: Place) -> Parser:
    root = small_model(at.folder)
    listed, models = Releases(ModelRepository(root), "small"), LocalModels(root)

    def read(_: Path) -> object:
        return [
            (one.since, max(one.drift.values())) for one in listed.listed() if one.drift
        ], models.released("small_onnx")

    good = [{"version": 1, "at": "2026-11-22T20:00:00+00:00", "drift": {"small_onnx at one:8001": 1e-6}}]
    return Parser(
        json.dumps(good).encode(),
        of_file(read, root / "small.releases.json"),
        (RepositoryError, ManifestError),
    )


@PARSERS.add()
def config(at: Place) -> Parser:
    def read(path: Path) -> object:
        found: Any = read_config(path)
        return Release.read({name: one.string_value for name, one in found.parameters.items()}), config_text(
            found
        )

    message = onnx_config("small_onnx", ServingOptions())
    for name, value in Release(3, 4, 0.05).parameters().items():
        message.parameters[name].string_value = value
    return Parser(config_text(message).encode(), of_file(read, at.folder / "config.pbtxt"), RepositoryError)


# What servers and tools say.


@PARSERS.add()
def model_config(_: Place) -> Parser:
    good = triton.service_pb2.ModelConfigResponse(
        config=onnx_config("m", ServingOptions())
    ).SerializeToString()

    def read(data: bytes) -> None:
        response = triton.service_pb2.ModelConfigResponse.FromString(data)
        protocol.read_shape(Target("one:8001", "m", None), response)

    return Parser(good, read, (DecodeError, ContractError))


@PARSERS.add()
def answer(_: Place) -> Parser:
    message = triton.service_pb2.ModelInferResponse(model_name="m", model_version="3")
    message.outputs.add(name=OUTPUT_NAME, datatype="FP32", shape=[2, 8])
    message.raw_output_contents.append(np.eye(2, 8, dtype=np.float32).tobytes())

    def read(data: bytes) -> None:
        result = triton.InferResult(triton.service_pb2.ModelInferResponse.FromString(data))
        found = protocol.read(Target("one:8001", "m", None), result, 2, 8)
        assert found.embeddings.shape == (2, 8)

    return Parser(message.SerializeToString(), read, (DecodeError, ServerError))


@PARSERS.add()
def perf_report(_: Place) -> Parser:
    good = (
        b"Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,"
        b"Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,"
        b"p90 latency,p95 latency,p99 latency\n2,5873.79,5,272,851,84,1258,241,1,2568,3622,4066,5165\n"
    )
    return Parser(good, of_text(lambda text: parse_report(text, 8, 2, settled=True).row()), PerfAnalyzerError)
