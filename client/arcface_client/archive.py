"""Write an ``.npz`` of embeddings whose length is known only at the end, without holding it in memory."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np

from .contract import EMBEDDING_DIM, Embeddings
from .errors import InputError


class EmbeddingArchive:
    """Collects embeddings and the names of their crops, and writes ``path`` whole or not at all.

    ``np.load(path)`` then has ``embeddings``, float32 [N, 512], and ``paths``, N strings.

    Args:
        path: The file to write; it is replaced when the ``with`` block ends without an error.

    Raises:
        InputError: There is no folder to write to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} to write {path.name} to; make it first.")

    def __enter__(self) -> EmbeddingArchive:
        # Beside the result, so that the disk which must hold the result is the one that fills up.
        self._rows = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def add(self, names: list[str], embeddings: Embeddings) -> None:
        """Append a batch: one name for each row of float32 [N, 512]."""
        self._names += names
        self._rows.write(embeddings.tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._rows:
            if kind is None:
                self._rows.flush()
                self._write()

    def _write(self) -> None:
        shape = (len(self._names), EMBEDDING_DIM)
        rows = (
            np.memmap(self._rows, np.float32, "r", shape=shape)
            if self._names
            else np.empty(shape, np.float32)
        )
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                for key, array in (("embeddings", rows), ("paths", np.array(self._names, np.str_))):
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array)  # type: ignore[no-untyped-call]
            part.chmod(0o666 & ~_umask())
            part.replace(self._path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _umask() -> int:
    """The process's mask for new files, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
