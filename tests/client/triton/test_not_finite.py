"""Crops whose embeddings are NaN: they are named, and all others are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from arcface_client import AsyncEmbeddingBackend, AsyncEmbeddingClient, EmbeddingClient
from arcface_client.backends.pooled import TritonBackend
from arcface_client.cli.app import main
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import NotFiniteError
from support.fake_triton import FakeTriton, served
from support.image_files import save_crops
from support.numbered import numbered, spoilt, unit_vectors

CROPS = spoilt(numbered(20), 3, 17)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of four crops a batch."""
    with served(FakeTriton(value=None, model="fake_onnx", max_batch_size=4)) as url:
        yield url


def encode(url: str, crops: Crops) -> None:
    with EmbeddingClient(url, "fake_onnx") as client:
        client.encode(crops)


def encode_async(url: str, crops: Crops) -> None:
    async def run() -> None:
        async with AsyncEmbeddingClient(url, "fake_onnx") as client:
            await client.encode(crops)

    asyncio.run(run())


def encode_with_a_pool(url: str, crops: Crops) -> None:
    with TritonBackend(url, "fake") as embedder:
        embedder.encode(crops, timeout_s=60)


def encode_with_a_pool_async(url: str, crops: Crops) -> None:
    async def run() -> None:
        async with AsyncEmbeddingBackend(TritonBackend(url, "fake")) as embedder:
            await embedder.encode(crops, timeout_s=60)

    asyncio.run(run())


@pytest.mark.parametrize("call", [encode, encode_async, encode_with_a_pool, encode_with_a_pool_async])
@pytest.mark.parametrize("positions", [(3, 17), (3,)])
def test_the_crops_are_named_and_the_other_embeddings_are_kept(
    url: str, call: Callable[[str, Crops], None], positions: tuple[int, ...]
) -> None:
    crops = spoilt(numbered(20), *positions)
    with pytest.raises(
        NotFiniteError, match=r"fake_onnx.* NaN or infinite values for the crops at 3"
    ) as caught:
        call(url, crops)
    error = caught.value
    assert error.positions == positions
    others = np.delete(np.arange(20), positions)
    np.testing.assert_array_equal(error.embeddings[others], unit_vectors(20)[others])
    assert np.isnan(error.embeddings[list(positions)]).all()


def stream(url: str, parts: list[Embeddings]) -> None:
    with EmbeddingClient(url, "fake_onnx") as client:
        for embeddings in client.stream(iter(CROPS)):
            parts.append(embeddings)


def stream_async(url: str, parts: list[Embeddings]) -> None:
    async def run() -> None:
        async with AsyncEmbeddingClient(url, "fake_onnx") as client:
            async for embeddings in client.stream(iter(CROPS)):
                parts.append(embeddings)

    asyncio.run(run())


@pytest.mark.parametrize("call", [stream, stream_async])
def test_a_stream_goes_on_and_names_the_crops_at_its_end(
    url: str, call: Callable[[str, list[Embeddings]], None]
) -> None:
    parts: list[Embeddings] = []
    with pytest.raises(NotFiniteError, match=r"at 3, 17 \(counted from 0\)") as caught:
        call(url, parts)
    assert caught.value.positions == (3, 17)
    others = np.delete(np.arange(20), [3, 17])
    np.testing.assert_array_equal(np.concatenate(parts)[others], unit_vectors(20)[others])


def test_the_command_embed_skips_such_files(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_crops(tmp_path, CROPS, "{:02}.png")
    output = tmp_path / "out.npz"
    assert main(["embed", str(tmp_path), "--output", str(output), "--url", url, "--model", "fake_onnx"]) == 1
    printed = capsys.readouterr()
    assert f"skipped: {tmp_path}/03.png: its embedding is NaN" in printed.err
    assert printed.out == f"{output}: 18 embeddings by fake_onnx:1, 2 files skipped\n"
    with np.load(output) as archive:
        np.testing.assert_array_equal(archive["embeddings"], np.delete(unit_vectors(20), [3, 17], axis=0))
        assert f"{tmp_path}/03.png" not in archive["paths"]


def test_another_replica_embeds_such_a_crop_and_the_first_one_stays_in_service(url: str) -> None:
    sound = FakeTriton(value=None, model="fake_onnx", nan=False)
    with served(sound) as other, TritonBackend([url, other], "fake") as embedder:
        for _ in range(4):
            embeddings, report = embedder.encode(CROPS, return_source=True)
            np.testing.assert_array_equal(embeddings, unit_vectors(20))
            assert [(source.where, source.crops) for source in report.sources] == [(url, 18), (other, 2)]
            assert "NaN or infinite values for the crops at 3, 17" in report.refusals[0].reason
        assert embedder.diagnostics().candidates[0].state == "serving"
