"""Write an ``.npz`` of embeddings whose length is known only at the end, without holding it in memory."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np

from ..contract import EMBEDDING_DIM, Embeddings
from .output import check_output, naming, replacing


class EmbeddingArchive:
    """Collects embeddings and the names of their crops, and writes ``path`` whole or not at all.

    ``np.load(path)`` then has ``embeddings``, float32 [N, 512], and ``paths``, N strings.

    Args:
        path: The file to write; it is replaced when the ``with`` block ends without an error.

    Raises:
        InputError: There is no folder to write to; the methods raise it when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()  # a link stays, and what it points to is written
        self._path = path
        self._names: list[str] = []
        check_output(path)

    def __enter__(self) -> EmbeddingArchive:
        # Beside the result, so that the disk which must hold the result is the one that fills up.
        with naming(self._path):
            self._rows = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def add(self, names: list[str], embeddings: Embeddings) -> None:
        """Append a batch: one name for each row of float32 [N, 512]."""
        self._names += names
        with naming(self._path):
            self._rows.write(embeddings.astype("<f4", copy=False).tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self._path), self._rows:
            if kind is None:
                self._rows.flush()
                self._write()

    def _write(self) -> None:
        with replacing(self._path) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(self._names), EMBEDDING_DIM)}
                np.lib.format.write_array_header_1_0(entry, header)  # type: ignore[no-untyped-call]
                self._rows.seek(0)
                shutil.copyfileobj(self._rows, entry)
            with archive.open("paths.npy", "w", force_zip64=True) as entry:
                names = np.array(self._names, np.str_)
                np.lib.format.write_array(entry, names)  # type: ignore[no-untyped-call]
