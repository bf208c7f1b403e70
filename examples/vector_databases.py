"""A gallery into FAISS, Lance, pgvector, Qdrant and Milvus, by their clients' own bulk calls.

Each function takes an open gallery, streams it batch by batch, and leaves out the rows without an embedding.
Embeddings have length one, so that the inner product is the cosine similarity. Keep the gallery's embedding
space beside the index (``gallery.info.space``), and refuse queries by a model of another one.

    pip install 'arcface-triton[bulk]' faiss-cpu
    python examples/vector_databases.py faiss gallery.parquet index.faiss
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from arcface_client.contract import Embeddings
from arcface_client.gallery import Gallery, open_gallery, vectors

Batches = Iterator[tuple[list[str], Embeddings]]


def embedded(gallery: Gallery) -> Batches:
    """Yield ids and unit rows, float32 [N, D], a batch at a time."""
    for batch in gallery.batches():
        rows = vectors(batch.column("embedding"))
        right = np.isfinite(rows).all(axis=1)
        yield batch.column("id").filter(pa.array(right)).to_pylist(), rows[right]


def into_faiss(gallery: Gallery, path: str) -> None:
    """An exact index in a file, and the ids beside it, one a line, in the order of its rows.

    From some millions of rows on, put "IVF4096,Flat" or "HNSW32" in the place of "Flat", train the index on a
    sample (``arcface_client.evaluation.neighbours.sample``), and measure its recall.
    """
    import faiss

    index = faiss.index_factory(gallery.info.dim, "Flat", faiss.METRIC_INNER_PRODUCT)
    with open(f"{path}.ids", "w", encoding="utf-8") as ids:  # noqa: PTH123
        for names, rows in embedded(gallery):
            index.add(rows)
            ids.writelines(f"{name}\n" for name in names)
    faiss.write_index(index, path)


def into_lance(gallery: Gallery, path: str) -> None:
    """A dataset of Lance: the gallery's own columns, type and metadata. An index of it is one call more.

    ``dataset.create_index("embedding", "IVF_PQ", metric="dot", num_partitions=256, num_sub_vectors=32)``
    """
    import lance

    rows = (
        batch.filter(batch.column("error").is_null())
        for batch in gallery.batches(gallery.info.schema().names)
    )
    lance.write_dataset(rows, path, schema=gallery.info.schema(), mode="overwrite")


def into_pgvector(gallery: Gallery, url: str) -> None:
    """A table ``faces`` of PostgreSQL with pgvector, by a binary COPY; index it when it is full.

    ``CREATE INDEX ON faces USING hnsw (embedding vector_ip_ops)``; queries order by ``embedding <#> %s``.
    """
    import psycopg
    from pgvector.psycopg import register_vector

    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        connection.execute(
            f"CREATE TABLE faces (id text PRIMARY KEY, embedding vector({gallery.info.dim:d}))"
        )
        with connection.cursor().copy("COPY faces (id, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["text", "vector"])
            for names, rows in embedded(gallery):
                for row in zip(names, rows, strict=True):
                    copy.write_row(row)


def into_qdrant(gallery: Gallery, where: str) -> None:
    """A collection ``faces`` of Qdrant, at a URL or, for a try, in a folder of this process.

    Qdrant's ids are numbers or UUIDs: a point's is made from the gallery's, which is in its payload.
    """
    from qdrant_client import QdrantClient, models

    client = QdrantClient(url=where) if "://" in where else QdrantClient(path=where)
    client.create_collection(
        "faces",
        vectors_config=models.VectorParams(size=gallery.info.dim, distance=models.Distance.DOT, on_disk=True),
    )
    for names, rows in embedded(gallery):
        client.upload_collection(
            "faces",
            vectors=rows,
            payload=[{"id": name} for name in names],
            ids=[str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in names],
            batch_size=256,
        )
    client.close()


def into_milvus(gallery: Gallery, where: str) -> None:
    """A collection ``faces`` of Milvus, at a URL or, for a try, in a file of Milvus Lite.

    A cluster reads large files itself: ``pymilvus.bulk_writer`` writes them for its bulk import.
    """
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(where)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=gallery.info.dim)
    index = client.prepare_index_params()
    index.add_index("embedding", index_type="AUTOINDEX", metric_type="IP")
    client.create_collection("faces", schema=schema, index_params=index)
    for names, rows in embedded(gallery):
        for start in range(0, len(names), 1024):  # a request may have 64 MB
            some = slice(start, start + 1024)
            client.insert(
                "faces",
                [{"id": name, "embedding": row} for name, row in zip(names[some], rows[some], strict=True)],
            )
    client.close()


INTO: dict[str, Callable[[Gallery, str], None]] = {
    "faiss": into_faiss,
    "lance": into_lance,
    "pgvector": into_pgvector,
    "qdrant": into_qdrant,
    "milvus": into_milvus,
}

if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in INTO:
        sys.exit(f"usage: vector_databases.py {{{','.join(INTO)}}} GALLERY TARGET")
    INTO[sys.argv[1]](open_gallery(sys.argv[2]), sys.argv[3])
