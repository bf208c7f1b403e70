"""Find the recognition model in an InsightFace pack, and fetch the pack where that is allowed."""

from __future__ import annotations

import logging
import sys
import tempfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

from arcface_client.backends.insightface import recognition_models
from arcface_client.errors import require
from arcface_client.models.files import expanded

from ..errors import PackError
from .model import PACK_TERMS

_log = logging.getLogger(__name__)

DEFAULT_ROOT = Path("~/.insightface")


def recognition_model(pack: str, *, root: Path = DEFAULT_ROOT, accept_license: bool = False) -> Path:
    """Give the path of a pack's recognition model, which is found by its I/O signature.

    Packs are in the folder ``models`` of InsightFace's ``root``. A missing one is downloaded only where the
    user accepts its terms.

    Raises:
        PackError: The pack is not there and may not or cannot be fetched, or holds no such model.
    """
    models = expanded(root) / "models"
    folder = models / pack
    if not any(folder.rglob("*.onnx")):
        if not accept_license:
            raise PackError(
                f"No pack {pack} at {folder}. {PACK_TERMS}; if that fits your use, add "
                "--accept-license to download it, or pass a model that you may use with --onnx-path."
            )
        _download(pack, models)
    candidates = recognition_models(folder)
    if len(candidates) != 1:
        found = ", ".join(path.name for path in candidates) or "none"
        raise PackError(
            f"{folder} has {len(candidates)} recognition models ({found}); expected one. "
            "Name the file with --onnx-path."
        )
    return candidates[0]


def _download(pack: str, models: Path) -> None:
    """Fetch a pack with InsightFace's own code into a folder beside the packs, and move it when it is whole.

    InsightFace would take a folder with half a download for the pack.
    """
    storage = require("insightface.utils.storage", extra="insightface", purpose="Downloading a pack")
    requests = require("requests", extra="insightface", purpose="Downloading a pack")
    folder = models / pack
    _log.info("Downloading %s. %s.", pack, PACK_TERMS)
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{pack}-", dir=models, ignore_cleanup_errors=True
        ) as staging:
            with redirect_stdout(sys.stderr):  # it prints where it puts the file
                storage.download("models", pack, root=staging)
            Path(staging, "models", pack).replace(folder)  # refuses a folder that holds files
    except (requests.RequestException, RuntimeError, OSError, zipfile.BadZipFile) as error:
        reason = type(error).__name__ if isinstance(error, requests.RequestException) else error
        raise PackError(
            f"Cannot download {pack} ({reason}). Fetch {storage.model_zoo_download_url(f'{pack}.zip')} "
            f"on a machine that can, and unpack it into {folder}; or pass a file with --onnx-path."
        ) from error
