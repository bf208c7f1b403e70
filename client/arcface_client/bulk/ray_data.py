"""Embedding on Ray Data: an actor class for ``map_batches``, with which ``ray_job`` makes a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..backends.factory import get_embedding_backend
from ..contract import CROP_BYTES, CROP_SHAPE, Crops
from ..crops import as_batch
from ..errors import CropError, InputError, OtherEmbeddingSpaceError
from ..models.embedding_space import EmbeddingSpace
from .decode import Decoded
from .rows import embed

if TYPE_CHECKING:
    import pyarrow as pa

CROP: Final = "crop"
_MADE: Final = ("embedding", "source", "error")


class EmbedCrops:
    """Embeds batches in an actor of Ray Data, or of anything else that calls an object on batches.

    ::

        crops.map_batches(
            EmbedCrops,
            fn_constructor_kwargs={"backend_type": "triton", "triton_url": "triton:8001"},
            batch_size=256,
            concurrency=(1, 8),
        )

    A batch has crops in its column ``crop``, as uint8 [N, 112, 112, 3] in BGR order; arrays may be
    read-only. In an Arrow table (``batch_format="pyarrow"``), a row of the column is 37,632 bytes: a
    ``fixed_size_binary``, a list of uint8, or a tensor of Ray's.

    In place of ``crop``, the result has ``embedding`` (float32, D numbers; NaN where there is none),
    ``source`` (the replica that embedded it) and ``error`` (why there is no embedding, or null). All other
    columns are kept. A row that comes with an ``error`` keeps it, and is not embedded.

    Args:
        arguments: Of ``get_embedding_backend``.
        space: The embedding space that all actors must share; None allows any.
        settings: Of ``get_embedding_backend``. A model in the actor's own process wants
            ``device="cuda"`` here and ``num_gpus=1`` of ``map_batches``; with a server, actors need no GPU.

    Raises:
        OtherEmbeddingSpaceError: The backend has another embedding space.
        ArcFaceError: The backend cannot serve; see ``get_embedding_backend`` and ``ensure_ready``.
    """

    def __init__(self, *arguments: Any, space: EmbeddingSpace | None = None, **settings: Any) -> None:
        self._backend = get_embedding_backend(*arguments, **settings)
        self._backend.ensure_ready()
        conflict = space and space.conflict(self._backend.space())
        if conflict:
            self._backend.close()
            raise OtherEmbeddingSpaceError(f"This actor's model has {conflict}; serve one model to all actors.")

    def __call__(self, batch: Any) -> Any:
        """Embed a batch: a dictionary of arrays, or an Arrow table; the result is of the same kind.

        Raises:
            InputError: The batch has no column ``crop``.
            CropError: The column does not hold crops.
            ArcFaceError: As ``EmbeddingBackend.encode``; a crop whose embedding is NaN is an ``error`` instead.
        """
        return self._embed_arrays(batch) if isinstance(batch, Mapping) else self._embed_table(batch)

    def _embed_arrays(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        _check_columns(list(batch))
        crops = batch[CROP]
        made = self._embed(
            as_batch(list(crops) if crops.dtype == object else crops), batch.get("id"), batch.get("error")
        )
        kept = {name: column for name, column in batch.items() if name not in (CROP, *_MADE)}
        return kept | {
            name: column if name == "embedding" else np.array(column, object)
            for name, column in zip(_MADE, made, strict=True)
        }

    def _embed_table(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        _check_columns(batch.column_names)
        ids, errors = (batch.column(name).to_pylist() if name in batch.column_names else None for name in ("id", "error"))
        embeddings, sources, errors = self._embed(_crops(batch.column(CROP)), ids, errors)
        made = (
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1]),
            pa.array(sources, pa.string()),
            pa.array(errors, pa.string()),
        )
        table = batch.drop_columns([name for name in batch.column_names if name in (CROP, *_MADE)])
        for name, column in zip(_MADE, made, strict=True):
            table = table.append_column(name, column)
        return table

    def _embed(
        self, crops: Crops, ids: Sequence[str] | None, errors: Sequence[str | None] | None
    ) -> tuple[Any, Sequence[str | None], Sequence[str | None]]:
        known = [None] * len(crops) if errors is None else [error or None for error in errors]
        right = [error is None for error in known]
        names = [f"row {index}" for index in range(len(crops))] if ids is None else list(map(str, ids))
        rows = embed(self._backend, Decoded(names, crops if all(right) else crops[right], known))
        return rows.embeddings, rows.sources, rows.errors


def _check_columns(names: Sequence[str]) -> None:
    if CROP not in names:
        raise InputError(f"The batch has the columns {', '.join(names)}; expected {CROP!r} among them.")


def _crops(column: pa.ChunkedArray) -> Crops:
    """The crops of an Arrow column, without a copy where it is one chunk: uint8 [N, 112, 112, 3]."""
    import pyarrow as pa

    parts = []
    for chunk in column.chunks:
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if pa.types.is_fixed_size_binary(values.type):
            width = values.type.byte_width
            flat = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * width :][: len(values) * width]
        else:
            flat = values.flatten().to_numpy(zero_copy_only=False)
        if flat.dtype != np.uint8 or flat.size != len(values) * CROP_BYTES:
            raise CropError(
                f"{CROP!r} is {column.type}; expected {CROP_BYTES} bytes in each row: a crop of 112x112 in BGR."
            )
        parts.append(flat.reshape(-1, *CROP_SHAPE))
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, *CROP_SHAPE), np.uint8), *parts])
