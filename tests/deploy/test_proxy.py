"""The nginx of docs/security.md in front of the real server."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import trustme
from tritonclient.utils import InferenceServerException

from arcface_client import EmbeddingClient, Tls
from arcface_client.contract import CROP_SHAPE, INPUT_NAME, Crops
from arcface_server import LocalTriton
from arcface_server.launch import reserve_addresses
from support.processes import wait_until
from support.tiny import TINY_MODEL, write_tiny_repository

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is missing: apt-get install nginx"),
]

PAGE = Path(__file__).parents[2] / "docs/security.md"


@pytest.fixture(scope="module")
def crops() -> Crops:
    return np.random.default_rng(0).integers(0, 256, (300, *CROP_SHAPE), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, and a model whose largest batch is more than nginx lets pass."""
    folder = tmp_path_factory.mktemp("proxy")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "own.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.crt")
    write_tiny_repository(folder / "models", max_batch_size=300)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Address of the proxy."""
    port = reserve_addresses("127.0.0.1", [None, None, None]).http_port
    paths = "".join(
        f" {name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    with LocalTriton(folder / "models", stop_timeout_s=1) as server:
        text = PAGE.read_text().partition("```nginx\n")[2].partition("```")[0]
        for old, new in {
            "http {": f"http {{ access_log off;{paths}",
            "8443": f"127.0.0.1:{port}",
            "/etc/nginx/tls": str(folder),
            "127.0.0.1:8001": server.grpc_url,
        }.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/pid; error_log stderr; {text}")
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        nginx = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: nginx.poll() is not None or listens(port))
            assert nginx.poll() is None, nginx.communicate()[1]
            yield f"127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.communicate()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def request(crops: Crops) -> list[grpcclient.InferInput]:
    tensor = grpcclient.InferInput(INPUT_NAME, list(crops.shape), "UINT8")
    tensor.set_data_from_numpy(crops)
    return [tensor]


def test_the_proxy_lets_256_crops_pass_and_refuses_more(folder: Path, url: str, crops: Crops) -> None:
    authority = str(folder / "own.pem")
    with grpcclient.InferenceServerClient(url, ssl=True, root_certificates=authority) as client:
        client.infer(TINY_MODEL, request(crops[:256]))
        with pytest.raises(InferenceServerException, match="413"):
            client.infer(TINY_MODEL, request(crops))


def test_the_client_splits_what_the_proxy_refuses(folder: Path, url: str, crops: Crops) -> None:
    tls = Tls(root_certificates=folder / "own.pem")
    with EmbeddingClient(url, TINY_MODEL, tls=tls) as client:
        assert client.encode(crops).shape == (300, 512)
        assert client.max_batch_size == 300
