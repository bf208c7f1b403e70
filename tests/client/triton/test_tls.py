"""TLS and mutual TLS with the real server: what the client and `doctor` say of a wrong certificate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme

from arcface_client import EmbeddingClient, Tls
from arcface_client.cli.app import main
from arcface_client.contract import Crops
from arcface_client.errors import ServerUnavailableError
from arcface_server import LocalTriton
from support.tiny import write_tiny_repository

pytestmark = pytest.mark.faults

YESTERDAY = datetime.now(timezone.utc) - timedelta(days=1)
SOON = YESTERDAY + timedelta(days=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and keys by who has them, two authorities, and a model repository."""
    folder = tmp_path_factory.mktemp("tls")
    own, other = trustme.CA(), trustme.CA()
    own.cert_pem.write_to_path(folder / "own.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    for name, authority, host, until in (
        ("server", own, "127.0.0.1", None),
        ("expired", own, "127.0.0.1", YESTERDAY),
        ("soon", own, "127.0.0.1", SOON),
        ("elsewhere", own, "example.org", None),
        ("client", own, "client.example.org", None),
        ("stranger", other, "client.example.org", None),
    ):
        issued = authority.issue_cert(host, not_after=until)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
    write_tiny_repository(folder / "models")
    return folder


@contextmanager
def server(folder: Path, certificate: str = "server") -> Iterator[LocalTriton]:
    flags = (
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={folder}/{certificate}.crt",
        f"--grpc-server-key={folder}/{certificate}.key",
        f"--grpc-root-cert={folder}/own.pem",
    )
    with LocalTriton(folder / "models", flags=flags, stop_timeout_s=1) as triton:
        yield triton


@pytest.fixture(scope="module")
def mutual(folder: Path) -> Iterator[LocalTriton]:
    with server(folder) as triton:
        yield triton


def tls(folder: Path, authority: str | None, client: str | None) -> Tls:
    return Tls(
        root_certificates=folder / f"{authority}.pem" if authority else None,
        certificate_chain=folder / f"{client}.crt" if client else None,
        private_key=folder / f"{client}.key" if client else None,
    )


Doctor = Callable[[str, Tls], tuple[int, list[dict[str, str]]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs `doctor`: its exit code, and what it found of the certificates."""

    def run(url: str, files: Tls) -> tuple[int, list[dict[str, str]]]:
        given = {
            "--root-certificates": files.root_certificates,
            "--certificate-chain": files.certificate_chain,
            "--private-key": files.private_key,
        }
        flags = [word for flag, path in given.items() if path for word in (flag, str(path))]
        code = main(["doctor", "--json", "--url", url, *flags])
        findings = json.loads(capsys.readouterr().out)
        return code, [one for one in findings if one["check"].startswith("certificates")]

    return run


def test_mutual_tls_reaches_the_server(
    folder: Path, mutual: LocalTriton, crops: Crops, doctor: Doctor
) -> None:
    right = tls(folder, "own", "client")
    with EmbeddingClient(mutual.grpc_url, "tiny_onnx", tls=right) as client:
        assert client.encode(crops[:3]).shape == (3, 512)
    _, (finding,) = doctor(mutual.grpc_url, right)
    assert finding["level"] == "ok", finding


@pytest.mark.parametrize(
    ("authority", "certificate", "reason"),
    [
        ("other", "client", "unable to get local issuer certificate|self.signed"),
        (None, "client", "unable to get local issuer certificate|self.signed"),
        ("own", None, "the server wants a client's certificate"),
        ("own", "stranger", "refuses the client's certificate"),
        ("own", "expired", "refuses the client's certificate"),
    ],
    ids=["another authority", "no authority", "no client", "a strange client", "an expired client"],
)
def test_a_wrong_certificate_of_the_client_is_refused(
    folder: Path,
    mutual: LocalTriton,
    crops: Crops,
    doctor: Doctor,
    authority: str | None,
    certificate: str | None,
    reason: str,
) -> None:
    files = tls(folder, authority, certificate)
    with (
        EmbeddingClient(mutual.grpc_url, "tiny_onnx", tls=files) as client,
        pytest.raises(ServerUnavailableError, match="that TLS is set as on the server"),
    ):
        client.encode(crops[:3])
    if authority is not None:  # else `doctor` has no flag that says TLS
        code, (finding,) = doctor(mutual.grpc_url, files)
        assert (code, finding["level"]) == (1, "error")
        assert finding["do"]
        assert re.search(reason, finding["found"]), finding


def test_a_client_without_tls_is_refused(mutual: LocalTriton, crops: Crops) -> None:
    with (
        EmbeddingClient(mutual.grpc_url, "tiny_onnx") as client,
        pytest.raises(ServerUnavailableError, match="that TLS is set as on the server"),
    ):
        client.encode(crops[:3])


@pytest.mark.parametrize(
    ("certificate", "level", "reason"),
    [
        ("expired", "error", "certificate has expired"),
        ("elsewhere", "error", "IP address mismatch"),
        ("soon", "warning", "valid for 4 more days"),
    ],
)
def test_a_servers_certificate_that_is_expired_or_anothers_is_refused(
    folder: Path, crops: Crops, doctor: Doctor, certificate: str, level: str, reason: str
) -> None:
    files = tls(folder, "own", "client")
    with server(folder, certificate) as triton:
        with EmbeddingClient(triton.grpc_url, "tiny_onnx", tls=files) as client:
            if level == "error":
                with pytest.raises(ServerUnavailableError, match="that TLS is set as on the server"):
                    client.encode(crops[:3])
            else:
                assert client.encode(crops[:3]).shape == (3, 512)
        _, (finding,) = doctor(triton.grpc_url, files)
    assert finding["level"] == level
    assert reason in finding["found"]
