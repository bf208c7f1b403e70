"""Jobs on a real Ray cluster of several nodes, which are killed in the middle; `make test-ray` runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from arcface_client import get_embedding_backend
from arcface_client.bulk import EmbedCrops, ray_job
from arcface_client.bulk.job import Result, fill_gallery
from arcface_client.bulk.ray_job import Actors, RayStream
from arcface_client.bulk.source import open_source
from arcface_client.cli.app import main
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ImageFileError, NoCandidateError
from arcface_client.evaluation.images import read_crop
from arcface_client.gallery import GalleryInfo, open_gallery
from arcface_server import LocalTriton
from support.galleries import rows_of
from support.processes import wait_until
from support.stand_in import DIM, SPACE, StandIn, embeddings_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # its sockets and logs
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.timeout(300),
]

ray = pytest.importorskip("ray", reason="needs the extra ray: make test-ray")

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}
COUNT = 600


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without processors, and two nodes. Each is a raylet with its workers, as on its own machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Every node has what the stand-in needs, as it has this package.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        cluster = Cluster(
            initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(2):
            cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def connected(nodes: Any) -> Iterator[Any]:
    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images, of which 200 are in two tar files, and one that is empty."""
    folder = tmp_path_factory.mktemp("ray") / "crops"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)
    for index, small in enumerate(pixels):
        Image.fromarray(small).resize((112, 112), 0).save(folder / f"{index:03}.png")
    for name in ("a", "b"):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for path in sorted(folder.glob("*.png"))[:100]:
                archive.add(path, path.name)
                path.unlink()
    (folder / "empty.png").touch()
    return folder


@pytest.fixture(scope="module")
def wanted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Embeddings]:
    """The stand-in's embedding of each image, by its id."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            archive.extractall(unpacked / path.name, filter="data")
    files = {path.name: path for path in folder.glob("*.png") if path.stat().st_size}
    files |= {f"{path.parent.name}/{path.name}": path for path in unpacked.glob("*/*.png")}
    return {name: embeddings_of(read_crop(path)[np.newaxis])[0] for name, path in files.items()}


def run(module: Any, folder: Path, output: Path, crop_s: float = 0.0, **how: Any) -> Result:
    source, info = open_source([str(folder)]), GalleryInfo(space=SPACE, dim=DIM, model="stand_in", version=1)
    actors, observe = Actors(least=2, most=2), how.pop("observe", ignore)
    stream = RayStream(module, source, partial(StandIn, crop_s), SPACE, actors, resize=False, observe=observe)
    return fill_gallery(stream, output, info, **{"part_rows": 100, **how})


def ignore(*_: object) -> None: ...


def check(output: Path, wanted: dict[str, Embeddings]) -> None:
    """Every image is there once, with its own embedding, and the empty one with its error."""
    rows = rows_of(output)
    assert rows.pop("empty.png")["error"] == "empty.png cannot be read as an image: it is empty."
    assert rows.keys() == wanted.keys()
    for name, row in rows.items():
        assert row["error"] is None
        np.testing.assert_array_equal(np.array(row["embedding"], np.float32), wanted[name])


def test_a_cluster_makes_the_gallery_that_one_machine_would(
    connected: Any,
    folder: Path,
    wanted: dict[str, Embeddings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_job, "_FILES", 50)
    output = tmp_path / "gallery.parquet"
    result = run(connected, folder, output)
    assert (result.rows, result.failed, result.counts.duplicates) == (COUNT + 1, 1, 0)
    check(output, wanted)
    assert open_gallery(output).info.job["sources"] == [str(folder)]

    again = run(connected, folder, output)
    assert (again.rows, again.counts.kept, again.counts.done) == (COUNT + 1, COUNT + 1, 0)


def test_a_row_that_failed_is_embedded_by_the_next_run_that_is_told_to(
    connected: Any, tmp_path: Path, crops: Crops
) -> None:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops/a.png").touch()
    Image.fromarray(crops[0][..., ::-1]).save(tmp_path / "crops/b.png")
    assert run(connected, tmp_path / "crops", tmp_path / "gallery").failed == 1
    Image.fromarray(crops[1][..., ::-1]).save(tmp_path / "crops/a.png")
    assert run(connected, tmp_path / "crops", tmp_path / "gallery").counts.kept == 2
    result = run(connected, tmp_path / "crops", tmp_path / "gallery", retry_failed=True)
    assert (result.rows, result.failed, result.counts.kept) == (2, 0, 1)
    ids, embeddings = open_gallery(tmp_path / "gallery").load()
    np.testing.assert_array_equal(embeddings[np.argsort(ids)], embeddings_of(crops[[1, 0]]))


def test_a_node_that_is_killed_in_the_middle_loses_nothing_and_doubles_nothing(
    nodes: Any,
    connected: Any,
    folder: Path,
    wanted: dict[str, Embeddings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_job, "_FILES", 20)
    monkeypatch.setattr(ray_job, "_BATCH", 20)
    victim = nodes.add_node(**NODE)
    nodes.wait_for_nodes()
    killed: list[int] = []

    def observe(counts: Any, _: object) -> None:
        if counts.done >= 100 and not killed:
            killed.append(counts.done)
            victim.kill_raylet()  # SIGKILL: its workers and its part of the object store go with it

    result = run(connected, folder, tmp_path / "gallery", crop_s=0.02, observe=observe)
    assert killed[0] < COUNT
    assert sum(node["Alive"] for node in ray.nodes()) == 3
    assert (result.rows, result.counts.duplicates) == (COUNT + 1, 0)
    check(tmp_path / "gallery", wanted)
    nodes.remove_node(victim, allow_graceful=False)


def command(address: str, folder: Path, output: Path, models: Path, *flags: str) -> list[str]:
    config = output.parent / "embedding.yaml"
    config.write_text(f"embedding: {{model: small, model_repository: {models}}}")
    return [
        *("embed", str(folder), "--output", str(output), "--config", str(config)),
        *("--backend", "onnxruntime", "--ray", address, *flags),
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130)])
def test_a_command_that_is_killed_goes_on_where_it_was(
    nodes: Any,
    folder: Path,
    built: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    output = tmp_path / "gallery"
    arguments = command(nodes.address, folder, output, built / "models", "--part-rows", "64", "--json")
    script = (
        "import sys; from arcface_client.bulk import ray_job; from arcface_client.cli.app import main\n"
        "ray_job._FILES = ray_job._BATCH = 16; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(output.glob("*.parquet"))) >= 2, timeout_s=120)
    process.send_signal(number)
    assert process.wait() == code
    left = sum(pq.read_metadata(path).num_rows for path in output.glob("*.parquet"))
    assert 0 < left < COUNT

    capfd.readouterr()
    assert main(arguments) == 1  # one image is empty
    found = json.loads(capfd.readouterr().out)
    assert (found["embedded"], found["failed"], found["kept"]) == (COUNT, 1, left)
    assert main(["embed", str(folder), "--output", str(tmp_path / "here"), *arguments[4:8]]) == 1
    here, there = (
        dict(zip(*open_gallery(tmp_path / path).load(), strict=True)) for path in ("here", "gallery")
    )
    assert here.keys() == there.keys()
    np.testing.assert_allclose([here[name] for name in here], [there[name] for name in here], atol=1e-6)
    assert open_gallery(output).info.space == open_gallery(tmp_path / "here").info.space


def test_actors_share_a_triton(
    nodes: Any, triton: LocalTriton, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--url", triton.grpc_url, "--model", "tiny_onnx", "--ray", nodes.address, "--actors", "2"]
    output = tmp_path / "gallery.parquet"
    assert main(["embed", str(folder), "--output", str(output), *flags]) == 1
    printed = capfd.readouterr()
    assert f"{output}: {COUNT} embeddings by tiny_onnx:2, 1 failed" in printed.out
    assert "skipped: empty.png cannot be read as an image: it is empty." in printed.err
    sources = set(pq.read_table(output).column("source").to_pylist())
    assert sources == {None, f"tiny_onnx:2 at {triton.grpc_url}"}


def test_a_pipeline_of_ray_data_embeds_its_own_batches(connected: Any, built: Path, crops: Crops) -> None:
    settings = {"embedding_model": "small", "embedding_model_repository": built / "models"}
    data = connected.data.from_numpy(crops[:20]).rename_columns({"data": "crop"})
    made = data.map_batches(
        EmbedCrops,
        fn_constructor_kwargs={"backend_type": "onnxruntime"} | settings,
        batch_size=8,
        batch_format="numpy",
        compute=connected.data.ActorPoolStrategy(size=1),
    ).take_batch(20)
    from arcface_client.runtimes.onnxruntime import OnnxRuntime

    wanted = OnnxRuntime(built / "models/small_onnx/1/model.onnx").embed(crops[:20])
    np.testing.assert_allclose(made["embedding"], wanted, atol=1e-5)


def test_what_a_task_or_an_actor_raises_is_the_jobs_own_error(
    connected: Any, tmp_path: Path, crops: Crops
) -> None:
    broken = partial(get_embedding_backend, "onnxruntime", embedding_model_repository=tmp_path)
    with pytest.raises(NoCandidateError, match=f"There is no arcface_r100_onnx in {tmp_path}"):
        ray_job.describe_there(connected, broken, Actors(), "")
    (tmp_path / "crops.parquet").write_bytes(b"no table")
    with pytest.raises(ImageFileError, match=r"crops\.parquet cannot be read as Parquet"):
        run(connected, tmp_path / "crops.parquet", tmp_path / "gallery")


def test_a_cluster_that_is_not_there_is_one_line(
    folder: Path,
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for given, said in (
        (address, f"arcface-client: No Ray cluster answers at {address}: Connection refused. Start one with"),
        ("nonsense", "arcface-client: The address of Ray is 'nonsense'; expected auto, local or HOST:PORT."),
    ):
        assert main(command(given, folder, tmp_path / "g", built / "models")) == 1
        assert capsys.readouterr().err.startswith(said)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command("auto", folder, tmp_path / "g", built / "models")) == 1
    said = "arcface-client: Embedding on Ray needs the package ray: pip install 'arcface-triton[ray]'\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "g").exists()


def test_a_cluster_of_another_version_is_one_line(
    nodes: Any, folder: Path, built: Path, tmp_path: Path
) -> None:
    arguments = command(nodes.address, folder, tmp_path / "g", built / "models")
    code = (
        "import sys, ray; from arcface_client.cli.app import main\n"
        "ray.__version__ = '2.1.0'; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("arcface-client:")]
    assert f"Install the versions of the Ray cluster at {nodes.address} here: Version mismatch" in line
    assert ray.__version__ in line
    assert "2.1.0" in line
