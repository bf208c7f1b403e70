"""From crops to rows of a gallery: one call of an embedder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..backends.base import EmbeddingBackend
from ..contract import Embeddings
from ..errors import NotFiniteError
from ..gallery import GalleryInfo, gallery_table
from ..models.golden import golden_crops
from ..observability.diagnostics import Served
from .decode import Decoded

if TYPE_CHECKING:
    import pyarrow as pa


PATIENCE_S: Final = 300.0
"""How long a call waits for a server that restarts, in seconds; without a limit it would give up at once."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a gallery.

    Attributes:
        ids: Of all N rows.
        embeddings: float32 [N, D]; NaN in rows that failed. D is 0 when all of them did.
        sources: The replica that embedded each row; None for those that failed.
        errors: Why a row has no embedding; None for those that have one.
    """

    ids: list[str]
    embeddings: Embeddings
    sources: list[str | None]
    errors: list[str | None]

    def table(self, info: GalleryInfo) -> pa.Table:
        """The same as a table of a gallery."""
        return gallery_table(info, self.ids, self.of_width(info.dim), self.sources, self.errors)

    def arrays(self, dim: int) -> dict[str, npt.NDArray[Any]]:
        """The columns without the ids, as arrays; ``dim`` as in ``of_width``."""
        return {
            "embedding": self.of_width(dim),
            "source": np.array(self.sources, object),
            "error": np.array(self.errors, object),
        }

    def of_width(self, dim: int) -> Embeddings:
        """The embeddings, float32 [N, ``dim``], also when all rows failed."""
        if self.embeddings.shape[1]:
            return self.embeddings
        return np.full((len(self.ids), dim), np.nan, np.float32)


def describe(backend: EmbeddingBackend, command: str) -> GalleryInfo:
    """What a gallery says of itself that an embedder makes; ``ensure_ready`` was called."""
    known = backend.diagnostics()
    return GalleryInfo(
        space=backend.space(),
        dim=width_of(backend),
        model=known.model,
        version=known.version,
        command=command,
    )


def width_of(backend: EmbeddingBackend) -> int:
    """How many numbers an embedder's embeddings have; ``ensure_ready`` was called."""
    return backend.encode(golden_crops()[:1]).shape[1]


def embed(backend: EmbeddingBackend, decoded: Decoded) -> Rows:
    """Embed what was read.

    Args:
        backend: Embeds; ``ensure_ready`` was called.
        decoded: Crops, and the errors of what could not be read.

    Raises:
        ArcFaceError: As ``EmbeddingBackend.encode``, but for crops whose embedding is NaN: they fail alone.
    """
    errors = list(decoded.errors)
    good = np.flatnonzero([error is None for error in errors])
    crops = decoded.crops
    served = Served(())
    found = np.empty((0, 0), np.float32)
    while len(crops):
        try:
            found, served = backend.encode(crops, return_source=True, timeout_s=PATIENCE_S)
            break
        except NotFiniteError as error:
            for position in error.positions:
                row = int(good[position])
                errors[row] = f"{decoded.ids[row]}: its embedding is NaN or infinite."
            bad = list(error.positions)
            crops, good = np.delete(crops, bad, axis=0), np.delete(good, bad)
    embeddings = np.full((len(errors), found.shape[1] if len(good) else 0), np.nan, np.float32)
    embeddings[good] = found
    name = "; ".join(map(str, served.sources))
    return Rows(decoded.ids, embeddings, [None if error else name for error in errors], errors)
