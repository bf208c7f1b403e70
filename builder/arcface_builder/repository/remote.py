"""A family of models in a bucket, laid out as Triton reads it: published, and pulled into a repository.

Versions never change, so their files are uploaded once. Then come the configurations, and last the index
``{name}.index.json`` with the SHA-256 of every file: it is replaced by one conditional write. A publication
that is killed leaves the old index, and the next one goes on where it was. ``pull`` reads the index and takes
no file that is not in it.

This module needs boto3.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from botocore.exceptions import ClientError

from arcface_client.models.files import sha256_of
from arcface_client.models.naming import family_models, onnx_model

from ..disk import flush
from ..errors import BucketError, OptionError, RepositoryError
from ..s3 import S3Bucket, is_missing, was_overtaken
from .publish import ModelRepository, check_name, os_errors

_URL: Final = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9.-]{1,62})(?:/(?P<prefix>[^?#]*))?")
_SHA256: Final = "sha256"
_PARTIAL: Final = "partial"


@dataclass(frozen=True)
class RemoteFile:
    """A file of the index.

    Attributes:
        path: Its path in the repository, with "/".
        sha256: Its SHA-256.
        size: Its bytes.
    """

    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not (isinstance(self.path, str) and isinstance(self.sha256, str) and isinstance(self.size, int)):
            raise TypeError("a file needs path, sha256 and size")
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or "\\" in self.path or path.parts[:1] == ():
            raise ValueError(f"the path {self.path!r} leaves the repository")


@dataclass(frozen=True)
class Moved:
    """What ``publish`` or ``pull`` did: what moved, and how many files were there already."""

    files: int
    bytes: int
    there: int


class RemoteRepository(S3Bucket):
    """A model repository in a bucket.

    Args:
        url: ``s3://bucket/prefix``.
        **options: As of ``S3Bucket``.

    Raises:
        OptionError: The URL is not one of S3.
        BucketError: The endpoint or region cannot be used.
    """

    def __init__(self, url: str, **options: Any) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise OptionError(f"The URL is {url!r}; expected s3://BUCKET/PREFIX.")
        super().__init__(match["bucket"], **options)
        prefix = (match["prefix"] or "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def publish(self, repository: ModelRepository, name: str) -> Moved:
        """Upload what the bucket lacks of a family of models, and replace the index.

        Raises:
            RepositoryError: There is no such model, or the bucket's version has other bytes.
            BucketError: S3 refused a request, or another publication was faster.
        """
        root = repository.root
        if not (root / onnx_model(check_name(name))).is_dir():
            raise RepositoryError(f"There is no {onnx_model(name)} in {root}; build it first.")
        old, tag = self._index(name)
        with repository.lock():  # no version appears, and no configuration changes, while they are read
            files = [
                RemoteFile(path.relative_to(root).as_posix(), sha256_of(path), path.stat().st_size)
                for path in _files(root, name)
            ]
            known = {file.path: file for file in old}
            for file in files:
                there = known.get(file.path)
                if _is_fixed(file.path) and there is not None and there.sha256 != file.sha256:
                    raise RepositoryError(
                        f"{file.path} has SHA-256 {file.sha256:.12}..., and in the {self.name} "
                        f"{there.sha256:.12}... A version never changes: build the next one, or publish to "
                        "another prefix."
                    )
            new = [file for file in files if known.get(file.path) != file]
            sent = [
                file
                for file in sorted(new, key=lambda file: not _is_fixed(file.path))
                if self._send(root, file)
            ]
        # Versions that another machine published stay.
        kept = [file for file in old if file.path not in {one.path for one in files}]
        merged = sorted([*files, *kept], key=lambda file: file.path)
        if merged != old:
            self._replace_index(name, merged, tag)
        return Moved(len(sent), sum(file.size for file in sent), len(files) - len(sent))

    def pull(self, repository: ModelRepository, name: str) -> Moved:
        """Download what a repository lacks of a family of models; every file is compared with the index.

        A version appears whole or not at all; the configurations come last.

        Raises:
            BucketError: The bucket has no such family, a file is missing, or its bytes are others.
            RepositoryError: The repository cannot be written, or its version has other bytes.
        """
        files, tag = self._index(check_name(name))
        if tag is None:
            raise BucketError(
                f"The {self.name} has no {self._prefix}{name}.index.json; publish {name} first."
            )
        root = repository.root
        with os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            partial = root.parent / f".{root.name}-{_PARTIAL}"  # beside the repository, which Triton reads
            with repository.lock():  # of two pods of a node, the second finds what the first fetched
                wanted = self._wanted(root, files)
                fetched = [file for file in wanted if self._fetch(file, partial)]
                self._place(root, partial, wanted)
                shutil.rmtree(partial, ignore_errors=True)
        return Moved(len(fetched), sum(file.size for file in fetched), len(files) - len(wanted))

    def _send(self, root: Path, file: RemoteFile) -> bool:
        """Upload a file unless an earlier attempt did; returns whether it was sent."""
        key, path = self._prefix + file.path, root / file.path
        with self._errors(key):
            try:
                there = self._s3.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if not is_missing(error):
                    raise
            else:
                if there["ContentLength"] == file.size and there["Metadata"].get(_SHA256) == file.sha256:
                    return False
            extra = {"Metadata": {_SHA256: file.sha256}, "ChecksumAlgorithm": "SHA256"}
            moved = self._report(f"up {file.path}", max(1, file.size))
            self._s3.upload_file(str(path), self._bucket, key, ExtraArgs=extra, Callback=moved)
        return True

    def _wanted(self, root: Path, files: list[RemoteFile]) -> list[RemoteFile]:
        """The files that a repository lacks, or has with other bytes."""
        wanted = []
        for file in files:
            path = root / file.path
            if path.is_file() and sha256_of(path) == file.sha256:
                continue
            if path.is_file() and _is_fixed(file.path):
                raise RepositoryError(
                    f"{path} is not the {file.path} of the {self.name}: a version never changes. "
                    "Remove one of them."
                )
            wanted.append(file)
        return wanted

    def _fetch(self, file: RemoteFile, partial: Path) -> bool:
        """Download a file unless an earlier attempt did; returns whether it was fetched."""
        path, key = partial / file.path, self._prefix + file.path
        if path.is_file() and sha256_of(path) == file.sha256:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not beside it: what a killed download leaves must not get into a version.
        part = partial / file.sha256
        with self._errors(key):
            moved = self._report(f"down {file.path}", max(1, file.size))
            self._s3.download_file(self._bucket, key, str(part), Callback=moved)
        if (found := sha256_of(part)) != file.sha256:
            part.unlink()
            raise BucketError(
                f"S3, {self.name}, key {key}: the file has SHA-256 {found:.12}..., and the index says "
                f"{file.sha256:.12}... Nothing was placed; publish it again."
            )
        flush(part)
        part.replace(path)
        return True

    def _place(self, root: Path, partial: Path, files: list[RemoteFile]) -> None:
        """Rename what was fetched into place: manifests, then versions, then configurations."""
        versions = {
            PurePosixPath(*PurePosixPath(file.path).parts[:2]) for file in files if _is_fixed(file.path)
        }
        loose = [file for file in files if not _is_fixed(file.path)]
        for file in loose:
            if "/" not in file.path:
                (partial / file.path).replace(root / file.path)
        for version in sorted(versions):
            target = root / version
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                (partial / version).rename(target)
                continue
            for path in sorted((partial / version).rglob("*")):  # a plan that came later
                if path.is_file():
                    path.replace(target / path.relative_to(partial / version))
        for file in loose:
            if "/" in file.path:
                (root / file.path).parent.mkdir(parents=True, exist_ok=True)
                (partial / file.path).replace(root / file.path)
        for folder in {root, *((root / file.path).parent for file in files)}:
            flush(folder)

    def _index(self, name: str) -> tuple[list[RemoteFile], str | None]:
        """The files that the bucket has of a family, and the tag of that list; None if there is no list."""
        key = f"{self._prefix}{name}.index.json"
        found = self._read(key)
        if found is None:
            return [], None
        content, tag = found
        return read_index(content, f"S3, {self.name}, key {key}"), tag

    def _replace_index(self, name: str, files: list[RemoteFile], tag: str | None) -> None:
        key = f"{self._prefix}{name}.index.json"
        body = json.dumps({"files": [asdict(file) for file in files]}, indent=1).encode()
        condition: Mapping[str, Any] = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            with self._errors(key):
                self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, **condition)
        except BucketError as error:
            if was_overtaken(error.__cause__):
                raise BucketError(
                    f"S3, {self.name}, key {key}: another publication was faster. Run the command again."
                ) from error
            raise


def read_index(content: bytes, where: str) -> list[RemoteFile]:
    """Read the list of files in an index.

    Raises:
        BucketError: It is not one, or names a file outside the repository.
    """
    try:
        return [RemoteFile(**entry) for entry in json.loads(content)["files"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BucketError(f"{where}: not an index of models ({error}).") from error


def _files(root: Path, name: str) -> Iterator[Path]:
    """The files of a family: manifests and signatures, the record of releases, versions, configurations."""
    for model in family_models(name):
        yield from root.glob(f"{model}-*.manifest.json*")
        for path in (root / model).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
    yield from root.glob(f"{name}.releases.json")


def _is_fixed(path: str) -> bool:
    """Whether a file belongs to a version, which never changes."""
    parts = PurePosixPath(path).parts
    return len(parts) > 2 and parts[1].isdecimal()
