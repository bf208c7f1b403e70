"""Trained networks, built, served by a real Triton, and measured on crops of real people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from arcface_builder.build import build
from arcface_builder.check.crops import face_like, noise
from arcface_builder.graph.mixed import on_cpu, quantised_graph
from arcface_builder.repository.publish import ModelRepository, find_onnx
from arcface_builder.source.load import OnnxFile
from arcface_client import EmbeddingClient
from arcface_client.cli.app import main as client
from arcface_client.contract import Crops, Embeddings
from arcface_client.models.golden import drifts
from arcface_client.runtimes.base import in_batches
from arcface_server import LocalTriton
from real.trained import bgr_network, tensorflow_network

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

FACES = os.environ.get("ARCFACE_TEST_FACES")


class Faces(NamedTuple):
    """Aligned 112x112 crops of people, and who is on each."""

    crops: Crops
    people: npt.NDArray[np.str_]


@pytest.fixture(scope="module")
def faces() -> Faces:
    if not FACES:
        pytest.skip("ARCFACE_TEST_FACES names no folder with crops of people, as DIR/p01/0.png")
    files = sorted(Path(FACES).glob("p*/*.png"))
    if not files:
        pytest.skip(f"ARCFACE_TEST_FACES: no crops of people such as {FACES}/p01/0.png")
    crops = np.stack([np.asarray(cv2.imread(str(file)), np.uint8) for file in files])
    return Faces(crops, np.array([file.parent.name for file in files]))


@pytest.fixture(scope="module")
def networks(pytestconfig: pytest.Config) -> Path:
    """Where fetched networks are kept between runs."""
    assert pytestconfig.cache
    return pytestconfig.cache.mkdir("trained-networks")


class Served:
    """A network behind a Triton of its own.

    Args:
        source: The network, and what its file does not say.
        folder: Where the model repository goes.
    """

    def __init__(self, source: OnnxFile, folder: Path) -> None:
        self.source = source
        self.built = build(source, name="trained", repository=folder / "models")
        self.server = LocalTriton(folder / "models")

    def embed(self, crops: Crops) -> Embeddings:
        with EmbeddingClient(self.server.grpc_url, model="trained_onnx") as embedding_client:
            return embedding_client.encode(crops)


@pytest.fixture(scope="module")
def bgr(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(OnnxFile(bgr_network(networks), color="bgr"), tmp_path_factory.mktemp("bgr"))
    with served.server:
        yield served


@pytest.fixture(scope="module")
def rgb(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(OnnxFile(bgr_network(networks), color="rgb"), tmp_path_factory.mktemp("rgb"))
    with served.server:
        yield served


@pytest.fixture(scope="module")
def tensorflow(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(OnnxFile(tensorflow_network(networks)), tmp_path_factory.mktemp("tensorflow"))
    with served.server:
        yield served


@pytest.fixture(params=["bgr", "rgb", "tensorflow"])
def served(request: pytest.FixtureRequest) -> Served:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_one_persons_crops_are_nearer_to_each_other_than_to_other_peoples(
    served: Served, faces: Faces
) -> None:
    embeddings = served.embed(faces.crops)

    similar = embeddings @ embeddings.T
    same = faces.people[:, np.newaxis] == faces.people
    every = np.triu_indices(len(similar), 1)
    impostors = np.sort(similar[every][~same[every]])[::-1]
    threshold = impostors[len(impostors) // 1000]
    assert (similar[every][same[every]] > threshold).all()  # TAR 1 at FAR 1e-3


def mean_of_one_person(embeddings: Embeddings, people: npt.NDArray[np.str_]) -> float:
    """Mean over the crops of their mean similarity with the other crops of the same person."""
    similar = embeddings @ embeddings.T
    same = (people[:, np.newaxis] == people) & ~np.eye(len(people), dtype=bool)
    several = same.any(axis=1)
    return float((np.where(same, similar, 0).sum(axis=1)[several] / same.sum(axis=1)[several]).mean())


def test_a_stated_channel_order_is_the_one_that_the_network_gets(
    bgr: Served, rgb: Served, faces: Faces
) -> None:
    means = [mean_of_one_person(network.embed(faces.crops), faces.people) for network in (bgr, rgb)]

    assert means[0] >= 0.75
    assert means[1] == pytest.approx(0.70, abs=0.01)


def test_a_network_of_another_width_layout_and_batch_is_served_as_it_is(tensorflow: Served) -> None:
    crops = np.concatenate([face_like(4, seed=1), noise(4, seed=1)])
    session = onnxruntime.InferenceSession(tensorflow.source.path, providers=["CPUExecutionProvider"])
    pixels = ((crops[..., ::-1].astype(np.float32) - 127.5) / 127.5).astype(np.float32)
    pairs = pixels.reshape(-1, 2, 112, 112, 3)  # the file takes two at a time
    raw = np.concatenate([session.run(None, {"input": pair})[0] for pair in pairs])

    got = tensorflow.embed(crops)

    assert got.shape == (8, 192)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_compare_finds_the_served_model_equal_to_its_source(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = ["compare", "trained_onnx", "--reference", str(served.source.path), "--json"]
    color = ["--color", served.source.color] if served.source.color else []
    code = client([*compare, *color, "--url", served.server.grpc_url])

    shown = capsys.readouterr()
    assert json.loads(shown.out or "{}").get("result", shown.err) == {"outcome": "passed", "reasons": []}
    assert code == 0


@pytest.mark.parametrize(("served", "allowed"), [("bgr", 1.4e-2), ("tensorflow", 6e-3)], indirect=["served"])
def test_int8_drifts_little_on_people_who_did_not_calibrate_it(
    served: Served, allowed: float, faces: Faces
) -> None:
    """Full int8 keeps within its goal and recognises as before; mixed keeps within its tolerance."""
    graph = find_onnx(ModelRepository(served.built.path.parents[1]), "trained").content()
    first = np.isin(faces.people, np.unique(faces.people)[::2])
    given = faces.crops[first]
    expected = served.embed(faces.crops)

    def embed(precision: str) -> Embeddings:
        written = quantised_graph(graph, precision, given, max_drift_cosine=1e-3)
        with on_cpu(written.content) as run:
            return in_batches(run, faces.crops, 8)

    int8 = embed("int8")
    assert drifts(expected, int8)[~first].max() <= allowed
    assert drifts(expected, embed("mixed"))[~first].max() <= 1e-3
    means = [mean_of_one_person(one, faces.people) for one in (expected, int8)]
    assert means[1] == pytest.approx(means[0], abs=0.005)
