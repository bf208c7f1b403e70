"""The examples do what they show, against a real server and the real libraries."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import photographs
import plain_grpc
import plain_http
from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client import EmbeddingBackend, get_embedding_backend
from arcface_client.contract import CROP_SHAPE, Crops
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from photograph import LANDMARKS, PHOTOGRAPH, face_crops
from support.exports import small_arcface
from support.tiny import write_tiny_repository

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_tiny_repository(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository) as server:
        yield server


@pytest.fixture
def crops() -> Crops:
    return np.random.default_rng(0).integers(0, 256, (3, *CROP_SHAPE), np.uint8)


def test_plain_calls_by_grpc_and_http_give_the_models_embeddings(
    server: LocalTriton, repository: Path, crops: Crops
) -> None:
    expected = OnnxRuntime(repository / "tiny_onnx" / "1" / "model.onnx").embed(crops)
    np.testing.assert_allclose(plain_grpc.embed(server.grpc_url, "tiny_onnx", crops), expected, atol=1e-6)
    np.testing.assert_allclose(plain_http.embed(server.http_url, "tiny_onnx", crops), expected, atol=1e-6)


def test_the_web_service_embeds_and_answers_wrong_bodies_with_422(
    server: LocalTriton, repository: Path, crops: Crops
) -> None:
    pytest.importorskip("fastapi", reason="needs fastapi and httpx, of the group test")
    import httpx

    from fastapi_service import create_app

    def open_backend() -> EmbeddingBackend:
        return get_embedding_backend(
            "triton",
            triton_url=server.grpc_url,
            embedding_model="tiny",
            embedding_model_repository=repository,
            allow_cpu_fallback=False,
        )

    async def calls() -> list[httpx.Response]:
        app = create_app(open_backend)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            bodies = [crops[:1].tobytes(), crops.tobytes()] * 4
            answers = await asyncio.gather(*(client.post("/embed", content=body) for body in bodies))
            return [*answers, await client.post("/embed", content=b"abc"), await client.get("/ready")]

    *answers, wrong, ready = asyncio.run(calls())

    expected = OnnxRuntime(repository / "tiny_onnx" / "1" / "model.onnx").embed(crops)
    assert [answer.status_code for answer in answers] == [200] * 8
    np.testing.assert_allclose(answers[1].json()["embeddings"], expected, atol=1e-5)
    assert answers[1].json()["models"] == ["tiny_onnx"]
    assert wrong.status_code == 422
    assert wrong.json()["detail"] == "The body has 3 bytes; expected a multiple of 37632."
    assert ready.json() == {"status": "ready"}


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")  # InsightFace calls it
def test_every_face_of_a_folder_of_photographs_is_embedded(tmp_path: Path) -> None:
    onnx.save_model(small_arcface(), tmp_path / "small.onnx")
    build(OnnxFile(tmp_path / "small.onnx"), name="small", repository=tmp_path / "repository")
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "t1.jpg").write_bytes(PHOTOGRAPH.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    faces = [SimpleNamespace(bbox=[*p.min(axis=0), *p.max(axis=0)], kps=p) for p in LANDMARKS]
    output = tmp_path / "faces.npz"

    with get_embedding_backend(
        "onnxruntime", embedding_model="small", embedding_model_repository=tmp_path / "repository"
    ) as backend:
        count = photographs.embed_photographs(folder, output, lambda image: faces, backend)
        expected = backend.encode(face_crops())

    written = np.load(output)
    assert count == 6
    np.testing.assert_allclose(written["embeddings"], expected, atol=1e-6)
    assert set(written["paths"]) == {str(folder / "t1.jpg")}
    assert written["boxes"].shape == (6, 4)


def test_without_a_detector_the_example_says_where_to_get_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            EXAMPLES / "photographs.py",
            tmp_path,
            "faces.npz",
            "--pack",
            tmp_path / "none",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"There is no InsightFace pack in {tmp_path / 'none'}. Download one from https"
    )


def test_the_demo_runs_with_ones_own_network(tmp_path: Path) -> None:
    onnx.save_model(small_arcface(), tmp_path / "mine.onnx")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", "--onnx-path", "mine.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Building mine.onnx" in done.stdout
    assert (tmp_path / "demo_output" / "similarity.png").exists()
