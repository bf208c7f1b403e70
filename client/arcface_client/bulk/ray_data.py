"""Embedding on Ray Data: an actor class for ``map_batches``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..backends.base import EmbeddingBackend
from ..backends.factory import get_embedding_backend
from ..contract import CROP_BYTES, CROP_SHAPE, Crops
from ..crops import as_batch
from ..errors import CropError, InputError, OtherEmbeddingSpaceError
from ..models.embedding_space import EmbeddingSpace
from .decode import Decoded
from .rows import Rows, embed, width_of

if TYPE_CHECKING:
    import pyarrow as pa

CROP: Final = "crop"
_MADE: Final = ("embedding", "source", "error")


class EmbedCrops:
    """Embeds batches in an actor of Ray Data, or in anything else that calls an object with batches.

    ::

        crops.map_batches(
            EmbedCrops,
            fn_constructor_kwargs={"backend_type": "triton", "triton_url": "triton:8001"},
            batch_size=256,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        )

    A batch has the crops in its column ``crop``: uint8 [N, 112, 112, 3], BGR; arrays may be read-only. In an
    Arrow table (``batch_format="pyarrow"``) a row of the column has 37,632 bytes, as a ``fixed_size_binary``,
    a list of uint8 or one of Ray's tensors.

    In place of ``crop``, the result has ``embedding`` (float32 [D]; NaN where there is none), ``source`` (the
    replica that embedded it) and ``error`` (why there is no embedding, or null). All other columns are kept.
    A row that comes with an ``error`` keeps it and is not embedded.

    Args:
        arguments: Of ``get_embedding_backend``.
        space: The embedding space that all actors must share; None allows any.
        settings: Of ``get_embedding_backend``. For a model in the actor's own process, give ``device="cuda"``
            here and ``num_gpus=1`` to ``map_batches``. With a server, actors need no GPU.

    Raises:
        OtherEmbeddingSpaceError: The backend has another embedding space.
        ArcFaceError: The backend cannot serve; see ``get_embedding_backend`` and ``ensure_ready``.
    """

    def __init__(self, *arguments: Any, space: EmbeddingSpace | None = None, **settings: Any) -> None:
        self._begin(get_embedding_backend(*arguments, **settings), space)

    def _begin(self, backend: EmbeddingBackend, space: EmbeddingSpace | None) -> None:
        backend.ensure_ready()
        conflict = space and space.conflict(backend.space())
        if conflict:
            backend.close()
            raise OtherEmbeddingSpaceError(
                f"This actor's model has {conflict}; serve one model to all actors."
            )
        self._backend = backend
        self._dim = width_of(backend)

    def __call__(self, batch: Any) -> Any:
        """Embed a batch: a dictionary of arrays, or an Arrow table; the result is of the same kind.

        Raises:
            InputError: The batch has no column ``crop``.
            CropError: The column does not hold crops.
            ArcFaceError: As ``EmbeddingBackend.encode``, but a crop whose embedding is NaN is an ``error``.
        """
        are_arrays = isinstance(batch, Mapping)
        names = list(batch) if are_arrays else batch.column_names
        if CROP not in names:
            raise InputError(f"The batch has the columns {', '.join(names)}; expected {CROP!r} among them.")
        return self._on_arrays(batch) if are_arrays else self._on_table(batch)

    def _on_arrays(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        column = batch[CROP]
        crops = as_batch(list(column) if column.dtype == object else column)
        rows = self._embed(crops, batch.get("id"), batch.get("error"))
        kept = {name: column for name, column in batch.items() if name not in (CROP, *_MADE)}
        return kept | rows.arrays(self._dim)

    def _on_table(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        names = batch.column_names
        ids, errors = (batch.column(name).to_pylist() if name in names else None for name in ("id", "error"))
        rows = self._embed(_crops(batch.column(CROP)), ids, errors)
        numbers = pa.array(rows.of_width(self._dim).reshape(-1))
        table = batch.select([name for name in names if name not in (CROP, *_MADE)])
        table = table.append_column("embedding", pa.FixedSizeListArray.from_arrays(numbers, self._dim))
        table = table.append_column("source", pa.array(rows.sources, pa.string()))
        return table.append_column("error", pa.array(rows.errors, pa.string()))

    def _embed(self, crops: Crops, ids: Sequence[object] | None, errors: Sequence[object] | None) -> Rows:
        names = [f"row {row}" for row in range(len(crops))] if ids is None else list(map(str, ids))
        known = [
            str(error) if error else None for error in (len(crops) * [None] if errors is None else errors)
        ]
        right = [error is None for error in known]
        return embed(self._backend, Decoded(names, crops if all(right) else crops[right], known))


def _crops(column: pa.ChunkedArray) -> Crops:
    """The crops of an Arrow column, uint8 [N, 112, 112, 3]; without a copy where it is one chunk."""
    import pyarrow as pa

    parts = []
    for chunk in column.chunks:
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if pa.types.is_fixed_size_binary(values.type):
            width = values.type.byte_width
            flat = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * width :][
                : len(values) * width
            ]
        else:
            flat = values.flatten().to_numpy(zero_copy_only=False)
        if flat.dtype != np.uint8 or flat.size != len(values) * CROP_BYTES:
            raise CropError(
                f"{CROP!r} is {column.type}; expected {CROP_BYTES} bytes in each row, a crop in BGR."
            )
        parts.append(flat.reshape(-1, *CROP_SHAPE))
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, *CROP_SHAPE), np.uint8), *parts])
