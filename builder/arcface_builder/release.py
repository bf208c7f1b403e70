"""Releases: version N of a family's models, on running servers.

The state is in the repository. Each model's configuration says which versions Triton loads, and in its
parameters which one clients use. Servers reload a model without a gap when they are asked to. A promotion
that is killed leaves the old release in use, and may be run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from arcface_client.contract import Crops, Progress, no_progress
from arcface_client.errors import ArcFaceError
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.models.manifest import ModelManifest
from arcface_client.models.naming import family_models, onnx_model
from arcface_client.models.plan_manifest import plan_manifest_paths
from arcface_client.models.release import Release
from arcface_client.models.repository import LocalModels
from arcface_client.triton.channel import Connection
from arcface_client.triton.client import EmbeddingClient
from arcface_client.triton.limits import RequestLimits
from arcface_client.triton.status import Target, explain

from .check.accuracy import ReferenceEmbeddings, reference_for_plans
from .disk import flush, replace_text
from .errors import ParityError, ReleaseError, RepositoryError
from .repository.config import CONFIG_FILE, config_text, read_config
from .repository.publish import ModelRepository, check_name, os_errors

_BATCHES: Final = (1, 8)
_LOAD_S: Final = 600.0
"""How long a server may take to load a model, in seconds; kernels for cuDNN may have to be chosen."""


_CONTROL: Final = (
    "Loading needs tritonserver --model-control-mode=explicit, and the key of its API where that is "
    "restricted (triton.metadata)."
)


@dataclass(frozen=True)
class Promotion:
    """An entry of the record of releases.

    Attributes:
        version: The release.
        at: When calls went over to it, ISO 8601 with its offset from UTC.
        drift: Largest drift of what the servers served from the reference, by model and server.
    """

    version: int
    at: str
    drift: Mapping[str, float]


@dataclass(frozen=True)
class ListedRelease:
    """A version of a family of models.

    Attributes:
        version: The version.
        state: "released", "canary", "loaded" (it stands by), or "on disk".
        since: When it was released last, ISO 8601; None if it never was.
        created: When its ONNX model was built.
        source_sha256: SHA-256 of the network that it was built from.
        models: Its models.
        drift: As in ``Promotion``.
    """

    version: int
    state: str
    since: str | None
    created: str
    source_sha256: str
    models: tuple[str, ...]
    drift: Mapping[str, float]


class Releases:
    """The releases of a family of models in a repository, and the servers that serve it.

    Args:
        repository: The repository that the servers read.
        name: The family's name.
        urls: The servers' gRPC addresses; without one, only the repository is changed.
        limits: Certificates and metadata of requests, for example the key of the API that loads models.

    Raises:
        OptionError: The name is not allowed.
        RepositoryError: There is no such model.
    """

    def __init__(
        self,
        repository: ModelRepository,
        name: str,
        urls: Sequence[str] = (),
        limits: RequestLimits | None = None,
    ) -> None:
        self.name = check_name(name)
        self._repository = repository
        self._models = LocalModels(repository.root)
        self._urls = tuple(urls)
        self._limits = limits or RequestLimits()
        self._record = repository.root / f"{name}.releases.json"
        if not self.versions:
            raise RepositoryError(
                f"There is no {onnx_model(name)} in {repository.root}; run "
                f"`arcface-builder build --name {name}`."
            )

    @property
    def versions(self) -> list[int]:
        """The versions on disk, oldest first."""
        return self._models.versions(onnx_model(self.name))

    @property
    def release(self) -> Release:
        """What the configuration of the ONNX model says."""
        return _release_of(self._config(onnx_model(self.name)))

    def listed(self) -> list[ListedRelease]:
        """Every version on disk, the newest first.

        Raises:
            ManifestError: A manifest is missing or wrong.
        """
        release, history = self.release, self._history()
        loaded = self._loaded()
        return [self._listed(version, release, loaded, history) for version in reversed(self.versions)]

    def promote(
        self,
        version: int,
        *,
        max_drift_cosine: float,
        share: float = 0.0,
        crops: Crops | None = None,
        report: Progress = no_progress,
    ) -> Promotion:
        """Load a version beside the release, check what the servers serve of it, then let calls go to it.

        Args:
            version: The version.
            max_drift_cosine: The largest drift from the reference that is allowed.
            share: Makes it a canary that gets this share of the calls; 0 makes it the release.
            crops: Real crops for the check, uint8 [N, 112, 112, 3]; generated ones fill them up.
            report: Called with each stage.

        Raises:
            ReleaseError: The version is not whole, or a server does not load it; the old release serves.
            ParityError: A served model drifts; the old release serves, and the version is unloaded.
        """
        models, history = self._models_of(version), self._history()
        old = self.release.version or max((one for one in self.versions if one < version), default=0)
        beside = self._models_of(old) if old in self.versions else ()
        before = {path: path.read_text("utf-8") for model in self._family() for path in self._configs(model)}
        self._configure(
            {model: [old, version] if model in beside else [version] for model in models}, Release(old)
        )
        try:
            self._reload(models, version, report)
            drift = self._check(version, models, max_drift_cosine, crops, report)
        except ArcFaceError:
            self._write(before)
            self._reload(models, None, report)
            raise
        report("Letting calls go to it", None)
        self._configure({}, Release(old, version, share) if share else Release(version))
        self._reload(self._family(), version, report)
        if not history and old:
            history = [Promotion(old, _now(), {})]
        promotion = Promotion(version, _now(), drift)
        self._write_history(history if share else [*history, promotion])
        return promotion

    def rollback(self, report: Progress = no_progress) -> int:
        """End a canary, or else let calls go to the release before; returns the release in use.

        Raises:
            ReleaseError: There is none before, or a server does not load it.
        """
        history = self._history()
        if self.release.canary is None:
            if len(history) < 2:
                raise ReleaseError(f"No release of {self.name} was promoted over another one.")
            history = [*history[:-2], replace(history[-2], at=_now())]
        target = history[-1].version
        if target not in self.versions:
            raise ReleaseError(f"Version {target} of {self.name} is not on disk; promote another one.")
        self._configure({model: [target] for model in self._models_of(target)}, Release(target))
        self._reload(self._family(), target, report)
        self._write_history(history)
        return target

    def retire(self, version: int, report: Progress = no_progress) -> None:
        """Let the servers unload a version that is not the release; it stays on disk.

        Raises:
            ReleaseError: It is the release or its canary, or it is not loaded.
        """
        release = self.release
        if version in (release.version, release.canary):
            raise ReleaseError(f"Version {version} is in use: promote another one, or roll back, first.")
        loaded = self._loaded()
        holders = {model: sorted(held - {version}) for model, held in loaded.items() if version in held}
        if not holders:
            raise ReleaseError(f"No model of {self.name} has version {version} loaded.")
        empty = [model for model, held in holders.items() if not held]
        if empty:
            raise ReleaseError(f"{empty[0]} has no other version to serve; compile one first.")
        self._configure(holders, release)
        self._reload(tuple(holders), None, report)

    def prune(self, keep: int, *, dry_run: bool = False) -> list[int]:
        """Remove versions from the disk: neither loaded ones nor the newest ``keep``; returns the removed."""
        loaded = {version for held in self._loaded().values() for version in held}
        old = [one for one in self.versions[: max(0, len(self.versions) - keep)] if one not in loaded]
        for version in () if dry_run else old:
            # The ONNX model last: it makes the version one of the list. Its manifest keeps the number taken.
            for model in family_models(self.name):
                self._remove(model, version)
        return old

    def _remove(self, model: str, version: int) -> None:
        folder = self._repository.root / model / str(version)
        if not folder.is_dir():
            return
        with self._repository.staging() as staged, os_errors(self._repository.root), self._repository.lock():
            folder.rename(staged / "removed")
            flush(folder.parent)
            if model != onnx_model(self.name):
                for path in (
                    *plan_manifest_paths(self._repository.root, model, version),
                    self._repository.manifest_path(model, version),
                ):
                    path.unlink(missing_ok=True)

    def _listed(
        self,
        version: int,
        release: Release,
        loaded: Mapping[str, set[int]],
        history: Sequence[Promotion],
    ) -> ListedRelease:
        manifest = ModelManifest.read(self._repository.manifest_path(onnx_model(self.name), version))
        is_loaded = any(version in held for held in loaded.values())
        state = "released" if version == release.version else "loaded" if is_loaded else "on disk"
        last = next((one for one in reversed(history) if one.version == version), None)
        return ListedRelease(
            version=version,
            state="canary" if release.is_canary(version) else state,
            since=None if last is None else last.at,
            created=manifest.created,
            source_sha256=manifest.source.sha256,
            models=self._models_of(version),
            drift={} if last is None else last.drift,
        )

    def _family(self) -> tuple[str, ...]:
        """The family's models that are in the repository."""
        return tuple(model for model in family_models(self.name) if self._models.versions(model))

    def _models_of(self, version: int) -> tuple[str, ...]:
        """The models that have a version, whole.

        Raises:
            ReleaseError: No ONNX model has it, or it lacks the plan of a GPU that is served.
        """
        if version not in self.versions:
            known = ", ".join(map(str, self.versions))
            raise ReleaseError(f"{onnx_model(self.name)} has no version {version}; it has {known}.")
        models = tuple(model for model in self._family() if version in self._models.versions(model))
        for model in models:
            for capability, file in self._config(model).cc_model_filenames.items():
                if not (self._repository.root / model / str(version) / file).is_file():
                    raise ReleaseError(
                        f"{model} version {version} has no plan for compute capability {capability}, which "
                        f"is served: compile it there, or remove the model's folder {version}."
                    )
        return models

    def _loaded(self) -> dict[str, set[int]]:
        """The versions that Triton is told to load, by model."""
        loaded = {}
        for model in self._family():
            policy, versions = self._config(model).version_policy, self._models.versions(model)
            if policy.specific.versions:
                loaded[model] = {*policy.specific.versions} & {*versions}
            else:
                newest = policy.latest.num_versions or 1
                loaded[model] = {*(versions if policy.HasField("all") else versions[-newest:])}
        return loaded

    def _configs(self, model: str) -> list[Path]:
        """A model's configurations: the one of every server, and those of servers with a name for theirs."""
        folder = self._repository.root / model
        return [folder / CONFIG_FILE, *sorted((folder / "configs").glob("*.pbtxt"))]

    def _config(self, model: str) -> Any:
        return self._read(self._repository.root / model / CONFIG_FILE)

    def _read(self, path: Path) -> Any:
        config = read_config(path)
        if config is None:
            raise RepositoryError(f"There is no {path}; build or compile the model again.")
        return config

    def _configure(self, versions: Mapping[str, Sequence[int]], release: Release) -> None:
        """Say in all configurations which version is released, and which ones some models load."""
        texts = {}
        for model in self._family():
            for path in self._configs(model):
                config = self._read(path)
                for name in Release(0, 0, 1.0).parameters():
                    config.parameters.pop(name, None)
                for name, value in release.parameters().items():
                    config.parameters[name].string_value = value
                if model in versions:
                    config.version_policy.specific.versions[:] = sorted(versions[model])
                texts[path] = config_text(config)
        self._write(texts)

    def _write(self, texts: Mapping[Path, str]) -> None:
        with self._repository.staging() as staged, os_errors(self._repository.root), self._repository.lock():
            for path, text in texts.items():
                if not path.is_file() or path.read_text("utf-8") != text:
                    replace_text(path, text, via=staged.parent)
                    flush(path.parent)

    def _history(self) -> list[Promotion]:
        if not self._record.is_file():
            return []
        try:
            return [Promotion(**entry) for entry in json.loads(self._record.read_text("utf-8"))]
        except (ValueError, TypeError) as error:
            raise RepositoryError(
                f"{self._record} is not a record of releases ({error}); restore it, or remove it: which "
                "version is released is in the configurations."
            ) from error

    def _write_history(self, history: Sequence[Promotion]) -> None:
        self._write({self._record: json.dumps([asdict(one) for one in history], indent=1) + "\n"})

    def _reload(self, models: Sequence[str], version: int | None, report: Progress) -> None:
        """Let every server read the configurations of models, and wait until a version of them is ready.

        Raises:
            ReleaseError: A server does not load one.
        """
        for url in self._urls:
            with closing(Connection(url, self._limits)) as connection:
                for model in models:
                    report(f"Loading {model} at {url}", None)
                    target = Target(url, model, version if version in self._models.versions(model) else None)
                    try:
                        connection.triton.load_model(model, client_timeout=_LOAD_S)
                    except InferenceServerException as error:
                        why = explain(error, target, connection.ask, timeout_s=_LOAD_S)
                        raise ReleaseError(f"{url} does not load {target}: {why} {_CONTROL}") from error
                    if version is not None:
                        client = EmbeddingClient(model=model, version=target.version, connection=connection)
                        client.ensure_ready()

    def _check(
        self,
        version: int,
        models: Sequence[str],
        max_drift_cosine: float,
        crops: Crops | None,
        report: Progress,
    ) -> dict[str, float]:
        """Compare what every server serves of a version with its ONNX model, run in this process."""
        if not self._urls:
            return {}
        report("Computing the reference embeddings", None)
        onnx = self._models.onnx(self.name, version)
        reference = reference_for_plans(onnx.path, None, crops, max_drift_cosine=max_drift_cosine)
        found = {}
        for url in self._urls:
            with closing(Connection(url, self._limits)) as connection:
                for model in models:
                    report(f"Comparing {model} version {version} at {url}", None)
                    client = EmbeddingClient(model=model, version=version, connection=connection)
                    found[f"{model} at {url}"] = self._drift(model, version, client, reference)
        return found

    def _drift(
        self, model: str, version: int, client: EmbeddingClient, reference: ReferenceEmbeddings
    ) -> float:
        golden = self._models.golden(model, version)
        if golden is not None and golden.space.is_int8:
            drift = largest_drift(golden.embeddings, client.encode(golden_crops()))
            if not drift <= reference.max_drift_cosine:
                raise ParityError(
                    f"{model} version {version} drifts by {drift:.2g} from what it was published with; "
                    f"expected at most {reference.max_drift_cosine:g}."
                )
            return drift
        accuracy = reference.compare(client.encode, _BATCHES)
        accuracy.check(f"served {model}")
        return accuracy.largest_drift_cosine


def _release_of(config: Any) -> Release:
    return Release.read({name: one.string_value for name, one in config.parameters.items()})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
