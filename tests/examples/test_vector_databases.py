"""A gallery in each database finds what the gallery's own search finds."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vector_databases
from arcface_client.contract import Embeddings
from arcface_client.evaluation.neighbours import nearest
from arcface_client.gallery import Gallery, GalleryInfo, gallery_table, open_gallery, write_gallery

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the clients
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

DIM = 32
FAILED = 7


def unit(count: int, seed: int) -> Embeddings:
    rows: Embeddings = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """2,000 rows of which one has failed."""
    path, count = tmp_path_factory.mktemp("gallery") / "gallery.parquet", 2000
    info, names = GalleryInfo(dim=DIM), [f"p{row // 10}/{row}.jpg" for row in range(count)]
    errors = ["it is empty" if row == FAILED else None for row in range(count)]
    write_gallery(path, info, [gallery_table(info, names, unit(count, 1), [None] * count, errors)])
    return open_gallery(path)


@pytest.fixture(scope="module")
def query() -> Embeddings:
    return unit(1, 2)


@pytest.fixture(scope="module")
def wanted(gallery: Gallery, query: Embeddings) -> list[str]:
    return [match.id for match in nearest(gallery, query, 5)[0]]


def needs(*modules: str) -> None:
    for module in modules:
        pytest.importorskip(module, reason=f"needs {module}: make test-ray")


def test_faiss(gallery: Gallery, query: Embeddings, wanted: list[str], tmp_path: Path) -> None:
    needs("faiss")
    import faiss

    vector_databases.into_faiss(gallery, str(tmp_path / "index.faiss"))
    index, ids = faiss.read_index(str(tmp_path / "index.faiss")), (tmp_path / "index.faiss.ids").read_text()
    assert index.ntotal == 1999
    names = ids.splitlines()
    assert [names[row] for row in index.search(query, 5)[1][0]] == wanted


def test_lance(gallery: Gallery, query: Embeddings, wanted: list[str], tmp_path: Path) -> None:
    needs("lance")
    import lance

    vector_databases.into_lance(gallery, str(tmp_path / "faces.lance"))
    data = lance.dataset(str(tmp_path / "faces.lance"))
    assert data.count_rows() == 1999
    found = data.to_table(nearest={"column": "embedding", "q": query[0], "k": 5, "metric": "dot"})
    assert found.column("id").to_pylist() == wanted
    assert GalleryInfo.read(data.schema) == gallery.info


def test_qdrant(gallery: Gallery, query: Embeddings, wanted: list[str], tmp_path: Path) -> None:
    needs("qdrant_client")
    from qdrant_client import QdrantClient

    vector_databases.into_qdrant(gallery, str(tmp_path / "qdrant"))
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    assert client.count("faces").count == 1999
    points = client.query_points("faces", query=query[0].tolist(), limit=5).points
    assert [point.payload["id"] for point in points if point.payload] == wanted
    assert points[0].id == str(uuid.uuid5(uuid.NAMESPACE_URL, wanted[0]))
    client.close()


def test_milvus(gallery: Gallery, query: Embeddings, wanted: list[str], tmp_path: Path) -> None:
    needs("pymilvus", "milvus_lite")
    from pymilvus import MilvusClient

    vector_databases.into_milvus(gallery, str(tmp_path / "milvus.db"))
    client = MilvusClient(str(tmp_path / "milvus.db"))
    (found,) = client.search("faces", query, limit=5)
    assert [match["id"] for match in found] == wanted
    client.close()


@pytest.fixture
def postgres() -> Iterator[str]:
    """A PostgreSQL server with pgvector, on a socket in a folder."""
    tools = shutil.which("pg_ctl") or next(iter(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), None)
    if tools is None:
        pytest.skip("needs PostgreSQL")
    binaries = Path(tools).resolve().parent
    shared = subprocess.check_output([binaries / "pg_config", "--sharedir"], text=True).strip()
    if not Path(shared, "extension/vector.control").exists():
        pytest.skip("needs pgvector, for example of apt-get install postgresql-17-pgvector")
    by = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # root may not run it
    with tempfile.TemporaryDirectory() as folder:
        if by:
            shutil.chown(folder, "postgres")
        server = [*by, str(binaries / "pg_ctl"), "-D", f"{folder}/data", "-w"]
        initdb = [*by, str(binaries / "initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "postgres"]
        subprocess.run(initdb, check=True)
        options = f"-k {folder} -c listen_addresses=''"
        subprocess.run([*server, "-o", options, "-l", f"{folder}/log", "start"], check=True)
        yield f"postgresql://postgres@/postgres?host={folder}"
        subprocess.run([*server, "-m", "immediate", "stop"], check=True)


def test_pgvector(postgres: str, gallery: Gallery, query: Embeddings, wanted: list[str]) -> None:
    needs("psycopg", "pgvector")
    psycopg = importlib.import_module("psycopg")
    register_vector = importlib.import_module("pgvector.psycopg").register_vector
    vector_databases.into_pgvector(gallery, postgres)
    with psycopg.connect(postgres) as connection:
        register_vector(connection)
        assert connection.execute("SELECT count(*) FROM faces").fetchone() == (1999,)
        found = connection.execute("SELECT id FROM faces ORDER BY embedding <#> %s LIMIT 5", (query[0],))
        assert [name for (name,) in found.fetchall()] == wanted
