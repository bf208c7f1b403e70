"""Processes that are forked from one that has an embedder."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import children
from support.siblings import write_siblings

ENCODE_IN_BOTH = """
import os, sys, tempfile
from pathlib import Path
import numpy as np
from arcface_client import EmbeddingClient, get_embedding_backend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.errors import InputError
from arcface_server import LocalTriton
from support.siblings import tiny_embeddings

crops = np.random.default_rng(0).integers(0, 256, (64, 112, 112, 3), np.uint8)
expected = tiny_embeddings(Path(sys.argv[2]), crops)
with LocalTriton(sys.argv[1], stop_timeout_s=1) as server:
    url = server.grpc_url
    settings = {"embedding_model": "small", "embedding_model_repository": sys.argv[3]}
    with (
        TritonBackend(url, "tiny") as embedder,
        EmbeddingClient(url, "tiny_onnx") as client,
        get_embedding_backend("onnxruntime", "cpu", **settings) as in_process,
    ):
        embedder.encode(crops), client.encode(crops), in_process.encode(crops)
        child = os.fork()
        refused = 0
        for encode in (embedder.encode, client.encode, in_process.encode):
            try:
                encode(crops[::-1])
            except InputError as error:
                refused += "was made before this process was forked" in str(error)
        if not child:
            embedder.close(), client.close(), in_process.close()
            with EmbeddingClient(url, "tiny_onnx") as own:
                refused += np.allclose(own.encode(crops), expected, atol=1e-6)
            os._exit(refused)  # but for LocalTriton's end
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        right = [np.allclose(one.encode(crops), expected, atol=1e-6) for one in (embedder, client)]
        print(status, refused, all(right))
"""


LEAVE_IN_CHILD = """
import os, sys, tempfile
from pathlib import Path
from arcface_client import EmbeddingClient
from arcface_server import LocalTriton

tempfile.tempdir = sys.argv[2]
with LocalTriton(sys.argv[1], stop_timeout_s=1) as server:
    child = os.fork()
    if not child:
        sys.exit(0)
    os.waitpid(child, 0)
    EmbeddingClient(server.grpc_url, "tiny_onnx").ensure_ready()
    print("serves on", len(list(Path(sys.argv[2]).glob("*/backends"))))
print(len(list(Path(sys.argv[2]).iterdir())))
"""


@pytest.mark.faults
def test_a_forked_process_is_refused_and_does_not_write_into_its_parents_calls(
    tmp_path: Path, built: Path
) -> None:
    repository = write_siblings(tmp_path / "repository")
    assert children.run(ENCODE_IN_BOTH, repository, tmp_path, built / "models") == "4 0 True\n"


@pytest.mark.faults
def test_a_server_outlives_processes_that_are_forked_from_its_own(tmp_path: Path) -> None:
    folders = tmp_path / "temporary"
    folders.mkdir()
    repository = write_siblings(tmp_path / "repository")
    assert children.run(LEAVE_IN_CHILD, repository, folders) == "serves on 1\n0\n"
