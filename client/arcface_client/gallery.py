"""Galleries: embeddings with their ids, and the embedding space that they belong to.

A gallery is a Parquet file, or a folder of such files as its parts::

    id         string                       of the crop; each once
    embedding  fixed_size_list<float32>[D]  unit length; NaN if the crop could not be embedded
    source     string                       the replica that embedded it
    error      string                       why there is no embedding; null if there is one

NaN and not null, because pyarrow before 26 cannot read a null in a column of fixed-size lists
(apache/arrow#35692), and vector searches want that type.

The schema's metadata has a ``GalleryInfo`` as JSON, under the key ``arcface_gallery``.
"""

from __future__ import annotations

import json
import tokenize
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import TypeAdapter

from .contract import Embeddings
from .errors import DAMAGE, InputError, OtherEmbeddingSpaceError, require
from .models.embedding_space import EmbeddingSpace
from .models.files import replacing
from .observability.versions import package_versions

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY: Final = b"arcface_gallery"
FORMAT: Final = 1
"""Of the metadata; a later one cannot be read here."""

ROWS_AT_ONCE: Final = 8_192
"""Rows of a row group, and of a batch that is read: 16 MiB of embeddings with D = 512."""

_WRITING: Final[Mapping[str, Any]] = {
    # Unit vectors do not compress, and a dictionary or statistics of them would be of no use.
    "compression": {"id": "zstd", "embedding.list.element": "none", "source": "zstd", "error": "zstd"},
    "use_dictionary": ["source", "error"],
    "write_statistics": ["id"],
}

_TOOLS: Final = ("arcface-triton", "numpy", "pyarrow", "tritonclient", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class GalleryInfo:
    """What a gallery says of itself.

    Attributes:
        space: The embedding space; what is None in it is unknown.
        dim: D, how many numbers an embedding has.
        model: The model that made it, for example "arcface_r50_onnx".
        version: The model's version.
        command: The command that made it.
        tools: Versions of the packages that made it.
        job: What decides whether a job that was interrupted may go on with it.
    """

    space: EmbeddingSpace = field(default_factory=EmbeddingSpace)
    dim: int
    model: str | None = None
    version: int | None = None
    command: str = ""
    tools: Mapping[str, str] = field(default_factory=lambda: package_versions(_TOOLS))
    job: Mapping[str, Any] = field(default_factory=dict)

    def schema(self) -> pa.Schema:
        """The schema of the gallery's files, with this as metadata."""
        pa = _pyarrow()
        columns = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), self.dim), nullable=False),
            pa.field("source", pa.string()),
            pa.field("error", pa.string()),
        ]
        return pa.schema(columns, {METADATA_KEY: json.dumps({"format": FORMAT} | asdict(self)).encode()})

    @classmethod
    def read(cls, schema: pa.Schema, name: str = "The table") -> GalleryInfo:
        """Read it from a schema.

        Args:
            schema: Of a file or table.
            name: What to call that in an error.

        Raises:
            InputError: It is not of a gallery, or of one that a later release made.
        """
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None or not {"id", "embedding", "error"} <= set(schema.names):
            raise InputError(
                f"{name} is not a gallery; expected a Parquet file that `arcface-client embed` wrote."
            )
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise InputError(f"{name} was written by a later release; read it with that one.")
            info = TypeAdapter(cls).validate_python(values)
            if schema.field("embedding").type.list_size != info.dim:
                raise InputError(f"{name} has embeddings of another width than its metadata says.")
            return info
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name} has damaged metadata: {' '.join(str(error).split())}") from error

    @property
    def named(self) -> str:
        """The model and its version, for example "arcface_r50_onnx:1"."""
        return (self.model or "a model") + ("" if self.version is None else f":{self.version}")

    def __str__(self) -> str:
        """The embedding space in words, for messages."""
        sha256 = self.space.source_sha256
        source = "of an unknown source" if sha256 is None else f"of source SHA-256 {sha256:.12}..."
        facts = [f"{self.dim} numbers", self.space.preprocessing, self.space.precision_class]
        return f"{self.named} {source} ({', '.join(filter(None, facts))})"


def check_same_space(one: GalleryInfo, other: GalleryInfo, names: tuple[str, str]) -> None:
    """Check that embeddings of two galleries can be compared.

    Args:
        one: Of the first gallery.
        other: Of the second.
        names: What to call them in an error.

    Raises:
        OtherEmbeddingSpaceError: They cannot; the message names both spaces.
    """
    difference = one.space.conflict(other.space)
    if one.dim != other.dim:
        difference = f"{other.dim} numbers an embedding, not {one.dim}"
    if difference is not None:
        raise OtherEmbeddingSpaceError(
            f"The embeddings of {names[0]} and {names[1]} cannot be compared: {names[0]} is by {one}, "
            f"{names[1]} by {other}. Embed the crops of one of them with the other's model."
        )


def gallery_table(
    info: GalleryInfo,
    ids: Sequence[str],
    embeddings: Embeddings,
    sources: Sequence[str | None],
    errors: Sequence[str | None],
) -> pa.Table:
    """Make rows of a gallery.

    Args:
        info: Of the gallery.
        ids: One for each row.
        embeddings: float32 [N, D], in the order of the ids; rows with an error may hold anything.
        sources: The replica that embedded each row.
        errors: Why a row has no embedding; None for those that have one.
    """
    pa = _pyarrow()
    failed = np.array([error is not None for error in errors], bool)
    numbers = np.where(failed[:, np.newaxis], np.float32(np.nan), embeddings) if failed.any() else embeddings
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), info.dim)
    arrays = [_text(ids), column, _text(sources), _text(errors)]
    return pa.Table.from_arrays(arrays, schema=info.schema())


def _text(values: Sequence[str | None]) -> pa.Array:
    r"""A column of texts; a byte of a name that is not UTF-8 is written as for example ``\udcff``."""
    encoded = [None if value is None else value.encode(errors="backslashreplace") for value in values]
    return _pyarrow().array(encoded, _pyarrow().string())


def write_gallery(path: Path, info: GalleryInfo, tables: Iterable[pa.Table]) -> int:
    """Write a gallery's file, whole or not at all; only ``ROWS_AT_ONCE`` rows are held in memory.

    Args:
        path: The file, which is replaced.
        info: What it says of itself.
        tables: Its rows, in tables of any size.

    Returns:
        How many rows it has.

    Raises:
        InputError: The disk is full, or the folder cannot be written to; what was there before is kept.
    """
    pa, parquet = _pyarrow(), _parquet()
    schema = info.schema()
    rows, waiting = 0, schema.empty_table()
    with replacing(path) as file, parquet.ParquetWriter(file, schema, **_WRITING) as writer:
        for table in tables:
            waiting = pa.concat_tables([waiting, table.cast(schema)])
            rows += len(table)
            while len(waiting) >= ROWS_AT_ONCE:
                writer.write_table(waiting.slice(0, ROWS_AT_ONCE), row_group_size=ROWS_AT_ONCE)
                waiting = waiting.slice(ROWS_AT_ONCE).combine_chunks()
        if len(waiting) or not rows:
            writer.write_table(waiting)
    return rows


class Gallery:
    """A gallery that is read in batches. Make it with ``open_gallery``.

    Attributes:
        path: Where it is.
        info: What it says of itself; of several parts, what the first one says.
        files: Its parts, in order.
        count: How many rows it has, failed ones included.
    """

    def __init__(self, path: str, filesystem: Any, files: Sequence[str]) -> None:
        self.path, self.files, self._filesystem = path, tuple(files), filesystem
        infos, counts = zip(*(self._describe(name) for name in self.files), strict=True)
        self.count = int(sum(counts))
        info: GalleryInfo = infos[0]
        for name, other in zip(self.files, infos, strict=True):
            check_same_space(info, other, (self.files[0], name))
        self.info = info

    def _describe(self, name: str) -> tuple[GalleryInfo, int]:
        with self._open(name) as file:
            return GalleryInfo.read(file.schema_arrow, name), file.metadata.num_rows

    def _open(self, name: str) -> Any:
        try:
            return _parquet().ParquetFile(name, filesystem=self._filesystem)
        except (_pyarrow().ArrowException, OSError, ValueError) as error:
            raise InputError(f"{name} cannot be read as Parquet: {error}") from error

    def batches(
        self, columns: Sequence[str] = ("id", "embedding"), size: int = ROWS_AT_ONCE
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, failed ones included, ``size`` at most at a time."""
        for name in self.files:
            with self._open(name) as file:
                try:
                    for batch in file.iter_batches(batch_size=size, columns=list(columns)):
                        batch.validate(full=True)
                        yield batch
                except (_pyarrow().ArrowException, OSError, ValueError) as error:
                    raise InputError(f"{name} is damaged: {' '.join(str(error).split())}") from error

    def tables(self) -> Iterator[pa.Table]:
        """Yield all columns of the rows, with the gallery's schema, for ``write_gallery``."""
        pa = _pyarrow()
        for batch in self.batches(("id", "embedding", "source", "error")):
            yield pa.Table.from_batches([batch])

    def ids(self) -> Iterator[list[str]]:
        """Yield the ids in batches, those of failed rows included."""
        for batch in self.batches(("id",)):
            yield batch.column("id").to_pylist()

    def load(self) -> tuple[list[str], Embeddings]:
        """All ids and embeddings, float32 [N, D], without the rows that failed."""
        ids, rows = list[str](), [np.empty((0, self.info.dim), np.float32)]
        for batch in self.batches(("id", "embedding", "error")):
            some = batch.filter(batch.column("error").is_null())
            ids += some.column("id").to_pylist()
            rows.append(vectors(some.column("embedding")))
        return ids, np.concatenate(rows)

    def failed(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the error of every row that has no embedding."""
        for batch in self.batches(("id", "error")):
            some = batch.filter(batch.column("error").is_valid())
            yield from zip(some.column("id").to_pylist(), some.column("error").to_pylist(), strict=True)


class _Archive(Gallery):
    """An ``.npz`` of ``arcface-client embed``, as a gallery; it is held in memory."""

    def __init__(self, path: str) -> None:
        try:
            with Path(path).open("rb") as file, np.load(file) as archive:
                self._ids, self._rows = list(map(str, archive["paths"].tolist())), archive["embeddings"]
                texts = {name: str(archive[name]) or None for name in archive.files if not archive[name].ndim}
            space = EmbeddingSpace(
                source_sha256=texts.get("source_sha256"),
                preprocessing=texts.get("preprocessing"),
                precision_class=texts.get("precision_class"),
            )
            version = texts.get("version")
            if self._rows.dtype.kind != "f":
                raise ValueError(f"embeddings of type {self._rows.dtype}; expected float32")
            if self._rows.ndim != 2 or not self._rows.shape[1] or len(self._rows) != len(self._ids):
                raise ValueError(f"{len(self._ids):,} paths, and embeddings of shape {self._rows.shape}")
            self.path, self.files, self.count = path, (path,), len(self._ids)
            self.info = GalleryInfo(
                space=space,
                dim=self._rows.shape[1],
                model=texts.get("model"),
                version=None if version is None else int(version),
                command=texts.get("command") or "",
                tools=json.loads(texts.get("tools") or "{}"),
            )
        except (*DAMAGE, tokenize.TokenError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is not an .npz that `arcface-client embed` wrote: {error}") from error

    def batches(
        self, columns: Sequence[str] = ("id", "embedding"), size: int = ROWS_AT_ONCE
    ) -> Iterator[pa.RecordBatch]:
        nothing = [None] * self.count
        table = gallery_table(self.info, self._ids, self._rows, nothing, nothing)
        yield from table.select(list(columns)).to_batches(max_chunksize=size)


def open_gallery(path: str | Path) -> Gallery:
    """Open a gallery: a Parquet file, a folder of parts, or an ``.npz``.

    Args:
        path: On this machine, or any URL of fsspec, for example "s3://bucket/gallery/".

    Raises:
        InputError: It is not there, or is not a gallery.
        OtherEmbeddingSpaceError: Its parts are of two embedding spaces, which the message names.
        MissingExtraError: pyarrow or fsspec is not installed.
    """
    name = str(path)
    if name.lower().endswith(".npz"):
        return _Archive(name)
    _pyarrow()
    core = require("fsspec.core", extra="bulk", purpose="Reading a gallery")
    filesystem, root = core.url_to_fs(name)
    if filesystem.isdir(root):
        found = filesystem.ls(root, detail=False)
        files = sorted(file for file in found if _is_part(file))
    else:
        files = [root] if filesystem.isfile(root) else []
    if not files:
        raise InputError(f"There is no gallery {name}; expected a .parquet file, or a folder of them.")
    return Gallery(name, filesystem, files)


def _is_part(file: str) -> bool:
    name = file.rpartition("/")[2]
    return name.endswith(".parquet") and not name.startswith(".")  # a part that is being written


def vectors(column: pa.FixedSizeListArray) -> Embeddings:
    """The rows of a column of embeddings, float32 [N, D], without a copy; NaN in rows that failed."""
    dim = column.type.list_size
    numbers = column.values.slice(column.offset * dim, len(column) * dim)
    rows: Embeddings = numbers.to_numpy(zero_copy_only=True).reshape(-1, dim)
    return rows


def _pyarrow() -> Any:
    return require("pyarrow", extra="bulk", purpose="A gallery in Parquet")


def _parquet() -> Any:
    return require("pyarrow.parquet", extra="bulk", purpose="A gallery in Parquet")
