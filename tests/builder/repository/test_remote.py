"""A model repository in a bucket: an S3 that speaks HTTP, and Triton reading it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arcface_builder.build import build
from arcface_builder.cli.app import main
from arcface_builder.errors import BucketError, OptionError, RepositoryError
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.remote import RemoteRepository
from arcface_builder.source.load import OnnxFile
from arcface_client.models.files import sha256_of
from arcface_client.models.golden import golden_crops
from arcface_client.triton.client import EmbeddingClient
from arcface_server import LocalTriton
from support import children
from support.s3_server import S3Server

BUCKET = "models"
URL = "s3://models/faces"
INDEX = "faces/small.index.json"
MODEL = "faces/small_onnx/1/model.onnx"


@pytest.fixture
def bucket(s3: S3Server) -> S3Server:
    s3.client.create_bucket(Bucket=BUCKET)
    return s3


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "models", tmp_path / "models")
    return tmp_path / "models"


def remote(bucket: S3Server, url: str = URL) -> RemoteRepository:
    return RemoteRepository(url, endpoint_url=bucket.url, attempts=1)


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in files}


def test_what_is_published_is_pulled_bit_for_bit_and_once(
    bucket: S3Server, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--name=small", f"--endpoint-url={bucket.url}", "--json"]
    (repository / "small_onnx-1.manifest.json.sig").write_bytes(b"signature")
    assert main(["publish", URL, f"--repository={repository}", *flags]) == 0
    published = json.loads(capsys.readouterr().out)
    assert published["files"] == 4
    assert main(["pull", URL, f"--repository={tmp_path / 'copy'}", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == published
    assert contents(tmp_path / "copy") == contents(repository)
    assert remote(bucket).publish(ModelRepository(repository), "small").files == 0
    assert remote(bucket).pull(ModelRepository(tmp_path / "copy"), "small").files == 0


def test_a_version_that_was_built_elsewhere_is_added_and_the_others_stay(
    bucket: S3Server, repository: Path, built: Path, tmp_path: Path
) -> None:
    remote(bucket).publish(ModelRepository(repository), "small")
    other = tmp_path / "other"
    remote(bucket).pull(ModelRepository(other), "small")
    build(OnnxFile(built / "source.onnx"), name="small", repository=other)
    shutil.rmtree(other / "small_onnx" / "1")
    remote(bucket).publish(ModelRepository(other), "small")
    remote(bucket).pull(ModelRepository(repository), "small")
    assert ModelRepository(repository).versions("small_onnx") == [1, 2]


def test_pods_of_one_node_that_pull_at_once_download_each_file_once(
    bucket: S3Server, repository: Path, tmp_path: Path
) -> None:
    published = remote(bucket).publish(ModelRepository(repository), "small")
    with ThreadPoolExecutor() as pool:
        pods = [
            pool.submit(remote(bucket).pull, ModelRepository(tmp_path / "node" / "models"), "small")
            for _ in range(4)
        ]
    assert sum(pod.result().files for pod in pods) == published.files
    assert contents(tmp_path / "node") == {
        f"models/{path}": sha256 for path, sha256 in contents(repository).items()
    }


def test_a_version_never_changes(bucket: S3Server, repository: Path, tmp_path: Path) -> None:
    remote(bucket).publish(ModelRepository(repository), "small")
    shutil.copytree(repository, tmp_path / "other")
    (tmp_path / "other" / "small_onnx" / "1" / "model.onnx").write_bytes(b"another")
    other = ModelRepository(tmp_path / "other")
    with pytest.raises(RepositoryError, match="A version never changes"):
        remote(bucket).publish(other, "small")
    with pytest.raises(RepositoryError, match="a version never changes"):
        remote(bucket).pull(other, "small")


def test_of_two_publications_at_once_the_slower_one_is_told(
    bucket: S3Server, repository: Path, tmp_path: Path
) -> None:
    def overtaking(_: str, __: float | None) -> None:
        bucket.client.put_object(Bucket=BUCKET, Key=INDEX, Body=b'{"files": []}')

    slow = RemoteRepository(URL, endpoint_url=bucket.url, progress=overtaking)
    with pytest.raises(BucketError, match="another publication was faster"):
        slow.publish(ModelRepository(repository), "small")
    assert remote(bucket).publish(ModelRepository(repository), "small").there == 3
    assert remote(bucket).pull(ModelRepository(tmp_path / "copy"), "small").files == 3


@pytest.mark.parametrize(
    ("harm", "message"),
    [("other bytes", "the index says"), ("missing", MODEL), ("no index", "publish small first")],
)
def test_what_is_wrong_in_the_bucket_is_named_and_nothing_is_placed(
    bucket: S3Server, repository: Path, tmp_path: Path, harm: str, message: str
) -> None:
    remote(bucket).publish(ModelRepository(repository), "small")
    if harm == "other bytes":
        bucket.client.put_object(Bucket=BUCKET, Key=MODEL, Body=b"other")
    else:
        bucket.client.delete_object(Bucket=BUCKET, Key=INDEX if harm == "no index" else MODEL)
    with pytest.raises(BucketError, match=message):
        remote(bucket).pull(ModelRepository(tmp_path / "copy"), "small")
    assert not (tmp_path / "copy" / "small_onnx").exists()


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "small_onnx/../../evil"])
def test_an_index_cannot_name_files_outside_the_repository(
    bucket: S3Server, tmp_path: Path, path: str
) -> None:
    body = json.dumps({"files": [{"path": path, "sha256": "0" * 64, "size": 1}]}).encode()
    bucket.client.put_object(Bucket=BUCKET, Key=INDEX, Body=body)
    with pytest.raises(BucketError, match="leaves the repository"):
        remote(bucket).pull(ModelRepository(tmp_path / "copy"), "small")


@pytest.mark.parametrize("url", ["models/faces", "https://models", "s3://", "s3://a"])
def test_a_url_that_is_not_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(OptionError, match="s3://BUCKET/PREFIX"):
        RemoteRepository(url)


KILLED = """
import sys
from pathlib import Path
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.remote import RemoteRepository
from support.children import die_at

verb, endpoint, root, step = sys.argv[1:]
remote = RemoteRepository("s3://models/faces", endpoint_url=endpoint)
repository = ModelRepository(Path(root))
die_at(int(step))
getattr(remote, verb)(repository, "small")
"""


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["publish", "pull"])
def test_a_run_that_is_killed_at_some_step_is_finished_by_the_next(
    bucket: S3Server, repository: Path, tmp_path: Path, verb: str
) -> None:
    for step in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        copy = tmp_path / f"{verb}-{step}"
        for key in [INDEX, MODEL] if verb == "publish" else []:
            bucket.client.delete_object(Bucket=BUCKET, Key=key)
        if verb == "pull":
            remote(bucket).publish(ModelRepository(repository), "small")
        root = repository if verb == "publish" else copy
        with children.start(KILLED, verb, bucket.url, root, step) as child:
            code = child.wait()
        assert code in (0, -9)
        if code and verb == "publish":
            remote(bucket).publish(ModelRepository(repository), "small")
        remote(bucket).pull(ModelRepository(copy), "small")
        assert contents(copy) == contents(repository)
        if code == 0:
            return
    pytest.fail("no run ended by itself")


@pytest.mark.faults
def test_triton_serves_the_bucket_itself(bucket: S3Server, repository: Path) -> None:
    remote(bucket).publish(ModelRepository(repository), "small")
    with (
        LocalTriton(f"s3://{bucket.url}/{BUCKET}/faces", stop_timeout_s=1) as server,
        EmbeddingClient(server.grpc_url, model="small_onnx") as client,
    ):
        assert client.encode(golden_crops()).shape[1] == 512
