"""Signed manifests: signed with openssl, as docs/security.md says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from arcface_client.errors import ConfigError, ManifestError
from arcface_client.models.repository import LocalModels

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which signs, is missing")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def key_pair(folder: Path, name: str, algorithm: str = "ed25519") -> Path:
    openssl("genpkey", "-algorithm", algorithm, "-out", folder / f"{name}.key")
    openssl("pkey", "-in", folder / f"{name}.key", "-pubout", "-out", folder / f"{name}.pub")
    return folder / f"{name}.pub"


def sign(manifest: Path, key: Path) -> None:
    signature = manifest.with_name(f"{manifest.name}.sig")
    openssl("pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", manifest, "-out", signature)


@pytest.fixture
def manifest(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed manifest, whose key is asked for."""
    monkeypatch.setenv("ARCFACE_PUBLIC_KEY", str(key_pair(tmp_path, "release")))
    manifest = models / "small_onnx-1.manifest.json"
    sign(manifest, tmp_path / "release.key")
    return manifest


def test_a_signed_model_is_found(manifest: Path) -> None:
    assert LocalModels(manifest.parent).onnx("small").version == 1


def test_a_manifest_without_a_signature_is_refused(manifest: Path) -> None:
    manifest.with_name(f"{manifest.name}.sig").unlink()
    with pytest.raises(ManifestError, match=r"has no signature .*docs/security"):
        LocalModels(manifest.parent).onnx("small")


def test_a_manifest_that_was_changed_or_signed_by_another_is_refused(manifest: Path, tmp_path: Path) -> None:
    signed = manifest.read_bytes()
    manifest.write_bytes(signed.replace(b'"version": 1', b'"version":  1'))
    with pytest.raises(ManifestError, match=r"is not what the owner of .*release\.pub signed"):
        LocalModels(manifest.parent).onnx("small")
    manifest.write_bytes(signed)
    key_pair(tmp_path, "other")
    sign(manifest, tmp_path / "other.key")
    with pytest.raises(ManifestError, match="is not what the owner of"):
        LocalModels(manifest.parent).onnx("small")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("missing", "cannot read .*missing.pub"),
        ("text", "is not a public key in PEM"),
        ("x25519", "another kind"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, said: str
) -> None:
    (tmp_path / "text.pub").write_text("no key")
    key_pair(tmp_path, "x25519", "x25519")
    monkeypatch.setenv("ARCFACE_PUBLIC_KEY", str(tmp_path / f"{key}.pub"))
    with pytest.raises(ConfigError, match=said):
        LocalModels(manifest.parent).onnx("small")
