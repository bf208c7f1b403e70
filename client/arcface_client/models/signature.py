"""Signatures of manifests: where a public key is configured, nothing is read that its owner did not sign."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..errors import ConfigError, ManifestError, require

PUBLIC_KEY: Final = "ARCFACE_PUBLIC_KEY"
"""Variable that names the file of an Ed25519 public key, PEM."""


def check_signature(manifest: Path, content: bytes) -> None:
    """Compare a manifest with the signature beside it, ``{manifest}.sig``, if a public key is configured.

    Raises:
        ManifestError: It has no signature, or another key's, or was changed after it was signed.
        ConfigError: The public key cannot be used.
        MissingExtraError: The package cryptography is not installed.
    """
    configured = os.environ.get(PUBLIC_KEY)
    if not configured:
        return
    purpose = "A signed manifest"
    ed25519 = require(
        "cryptography.hazmat.primitives.asymmetric.ed25519", extra="signatures", purpose=purpose
    )
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(Path(configured).read_bytes())
    except OSError as error:
        raise ConfigError(f"{PUBLIC_KEY}: cannot read {configured}: {error.strerror}.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{PUBLIC_KEY}: {configured} is not a public key in PEM.") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{PUBLIC_KEY}: {configured} is a key of another kind; expected Ed25519.")
    file = manifest.with_name(f"{manifest.name}.sig")
    try:
        key.verify(file.read_bytes(), content)
    except OSError as error:
        raise ManifestError(
            f"{manifest} has no signature ({file.name}: {error.strerror}), and {PUBLIC_KEY} is set: sign it, "
            "as docs/security.md says."
        ) from error
    except InvalidSignature as error:
        raise ManifestError(
            f"{manifest} is not what the owner of {configured} signed ({file.name}). Do not serve this "
            "version before you know who changed it."
        ) from error
