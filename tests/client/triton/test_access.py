"""What a server or a gateway wants before it lets a request in, and where it may be found."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from arcface_client import AsyncEmbeddingClient, EmbeddingClient, get_embedding_backend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops
from arcface_client.errors import AccessError, ConfigError, InputError, NoCandidateError
from arcface_client.triton.limits import RequestLimits
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.siblings import write_siblings

KEY = {"triton-grpc-protocol-infer-key": "secret"}


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """A server that infers for those who know the key, and says everything else to all."""
    repository = write_siblings(tmp_path_factory.mktemp("restricted"))
    flags = ("--grpc-restricted-protocol=inference:infer-key=secret",)
    with LocalTriton(repository, flags=flags, stop_timeout_s=1) as server:
        yield server


def test_a_restricted_protocol_is_used_with_its_key(restricted: LocalTriton, crops: Crops) -> None:
    async def encode() -> tuple[int, ...]:
        async with AsyncEmbeddingClient(restricted.grpc_url, "tiny_onnx", metadata=KEY) as client:
            return (await client.encode(crops)).shape

    with EmbeddingClient(restricted.grpc_url, "tiny_onnx", metadata=KEY) as client:
        assert client.encode(crops).shape == (100, 512)
    assert asyncio.run(encode()) == (100, 512)


def test_the_key_is_a_setting(restricted: LocalTriton, crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_TRITON_METADATA", "triton-grpc-protocol-infer-key=secret,trace=1")
    with get_embedding_backend("triton", triton_url=restricted.grpc_url, embedding_model="tiny") as embedder:
        _, report = embedder.encode(crops[:3], return_source=True)
    assert [source.model for source in report.sources] == ["tiny_trt"]


def test_a_key_is_read_from_its_file_for_each_request(
    restricted: LocalTriton, crops: Crops, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    metadata = {"triton-grpc-protocol-infer-key": f"@{file}"}
    with EmbeddingClient(restricted.grpc_url, "tiny_onnx", metadata=metadata) as client:
        assert client.encode(crops[:3]).shape == (3, 512)
        file.write_text("another")
        with pytest.raises(AccessError):
            client.encode(crops[:3])
        file.unlink()
        with pytest.raises(ConfigError, match=r"Cannot read the key .*set triton\.metadata\.triton-grpc"):
            client.encode(crops[:3])


@pytest.mark.parametrize("metadata", [None, {"triton-grpc-protocol-infer-key": "wrong"}])
def test_a_missing_or_wrong_key_is_told_as_what_it_is(
    restricted: LocalTriton, crops: Crops, metadata: dict[str, str] | None
) -> None:
    with (
        EmbeddingClient(restricted.grpc_url, "tiny_onnx", metadata=metadata) as client,
        pytest.raises(
            AccessError, match=r"expecting header 'triton-grpc-protocol-infer-key'.* Give the token"
        ),
    ):
        client.encode(crops[:1])
    with (
        TritonBackend(restricted.grpc_url, "tiny", limits=RequestLimits(metadata=metadata or {})) as embedder,
        pytest.raises(NoCandidateError, match="Give the token or key that it wants") as caught,
    ):
        embedder.encode(crops[:1])
    assert {type(error) for error in caught.value.reasons.values()} == {AccessError}


def test_a_token_is_read_from_its_file_for_each_request(crops: Crops, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    fake = FakeTriton(model="fake_onnx", token="first")
    limits = RequestLimits(token_file=file)
    with served(fake) as url, TritonBackend(url, "fake", limits=limits) as embedder:
        embedder.ensure_ready()
        fake.token = "second"
        file.write_text("second\n")
        assert embedder.encode(crops[:3]).shape == (3, 512)
        file.unlink()
        with pytest.raises(NoCandidateError, match="Cannot read the token"):
            embedder.encode(crops[:3])


def test_an_empty_or_missing_token_file_is_named_once_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError) as missing:
        RequestLimits(token_file=file).headers()
    assert str(missing.value) == (
        f"Cannot read the token from {file}: No such file or directory. Write the token there, or set "
        "triton.token_file to its file."
    )
    file.write_text(" \n")
    with pytest.raises(ConfigError, match=f"^{file} is empty; expected a token"):
        RequestLimits(token_file=file).headers()


@pytest.mark.parametrize(
    ("token", "reason"), [(None, "no token"), ("another", "another token")], ids=["missing", "wrong"]
)
def test_a_refused_token_is_not_tried_again(
    crops: Crops, tmp_path: Path, token: str | None, reason: str
) -> None:
    file = tmp_path / "token"
    file.write_text(token or "")
    started = time.monotonic()
    with (
        served(FakeTriton(model="fake_onnx", token="secret")) as url,
        TritonBackend(url, "fake", limits=RequestLimits(token_file=file if token else None)) as embedder,
        pytest.raises(NoCandidateError, match=f"does not list its models .*{reason}"),
    ):
        embedder.encode(crops[:1], timeout_s=30)
    assert time.monotonic() - started < 5


def test_metadata_that_grpc_cannot_send_is_refused() -> None:
    with pytest.raises(InputError, match="has the key 'Authorization'; expected a key of a-z"):
        RequestLimits(metadata={"Authorization": "Bearer x"})


def test_requests_are_spread_over_all_servers_behind_a_name(crops: Crops) -> None:
    first, second = (FakeTriton(model="fake_onnx", max_batch_size=2) for _ in range(2))
    with ExitStack() as stack:
        # The name localhost stands for both.
        port = int(stack.enter_context(served(first)).rpartition(":")[2])
        try:
            stack.enter_context(served(second, f"[::1]:{port}"))
        except RuntimeError:
            pytest.skip("this machine has no IPv6, and so no name with two addresses")
        with TritonBackend(f"dns:///localhost:{port}", "fake") as embedder:
            embedder.ensure_ready()
            for _ in range(3):
                embedder.encode(crops)
    shares = Counter({"first": first.requests, "second": second.requests})
    assert min(shares.values()) > 0.4 * shares.total(), shares


def test_a_server_on_a_unix_socket_is_used(crops: Crops, tmp_path: Path) -> None:
    with (
        served(FakeTriton(), f"unix:{tmp_path}/triton.sock") as url,
        EmbeddingClient(url, "fake") as client,
    ):
        assert client.encode(crops[:3]).shape == (3, 512)


@pytest.mark.parametrize("url", ["dns:///triton", "unix:", "dns:///:8001"])
def test_a_name_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected host:port .* or dns:///host:port"):
        EmbeddingClient(url)
