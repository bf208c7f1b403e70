"""Releases: version N of a family's models, on running servers.

The state is in the repository. Each model's configuration says which versions Triton loads, and in its
parameters which one clients use. Servers reload a model without a gap when they are asked to. A promotion
that is interrupted restores what was there. One that is killed leaves the old release in use, and the next
`promote` or `rollback` finishes or undoes it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

from tritonclient.utils import InferenceServerException

from arcface_client.contract import Crops, Progress, no_progress
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.models.manifest import ModelManifest
from arcface_client.models.naming import family_models, onnx_model
from arcface_client.models.plan_manifest import plan_manifest_paths
from arcface_client.models.release import Release
from arcface_client.triton.channel import Connection
from arcface_client.triton.client import EmbeddingClient
from arcface_client.triton.limits import RequestLimits
from arcface_client.triton.status import Target, explain

from .check.accuracy import ReferenceEmbeddings, reference_for_plans
from .disk import flush
from .errors import ParityError, ReleaseError
from .repository.publish import ModelRepository, now
from .repository.release_state import Promotion, ReleaseState

_log = logging.getLogger(__name__)

_BATCHES: Final = (1, 8)
_LOAD_S: Final = 600.0
"""How long a server may take to load a model, in seconds; kernels for cuDNN may have to be chosen."""


_CONTROL: Final = (
    "Loading needs tritonserver --model-control-mode=explicit, and the key of its API where that is "
    "restricted (triton.metadata)."
)


@dataclass(frozen=True)
class ListedRelease:
    """A version of a family of models.

    Its state is "released", "canary", "unchecked" (a promotion checks it, or was killed), "loaded" (it stands
    by), or "on disk". ``since`` is when it was released last, and ``created`` when its ONNX model was built,
    both ISO 8601. ``drift`` is that of its ``Promotion``.
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

    Without ``urls``, the servers' gRPC addresses, only the repository is changed. ``limits`` has certificates
    and the metadata of requests, for example the key of the API that loads models.

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
        self.state = ReleaseState(repository, name)
        self.name = name
        self._repository = repository
        self._urls = tuple(urls)
        self._limits = limits or RequestLimits()

    def listed(self) -> list[ListedRelease]:
        """Every version on disk, the newest first.

        Raises:
            ManifestError: A manifest is missing or wrong.
        """
        release, history = self.state.release, self.state.history()
        loaded = {version for held in self.state.loaded().values() for version in held}
        listed = []
        for version in reversed(self.state.versions):
            manifest = self._manifest(version)
            state = "released" if version == release.version else "loaded" if version in loaded else "on disk"
            if version == release.canary:
                state = "canary" if release.share else "unchecked"
            last = next((one for one in reversed(history) if one.version == version), None)
            listed.append(
                ListedRelease(
                    version=version,
                    state=state,
                    since=None if last is None else last.at,
                    created=manifest.created,
                    source_sha256=manifest.source.sha256,
                    models=self.state.models_of(version),
                    drift={} if last is None else last.drift,
                )
            )
        return listed

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
            share: Makes it a canary that gets this share of the calls, or none if it has another embedding
                space; 0 makes it the release.
            crops: Real crops for the check, uint8 [N, 112, 112, 3]; generated ones fill them up.
            report: Called with each stage.

        Raises:
            ReleaseError: The version is not whole, a server does not load it, or it should be a canary and
                is what serves; the old release serves.
            ParityError: A served model drifts; the old release serves, and the version is unloaded.
        """
        models, history = self.state.models_of(version), self.state.history()
        old = self._old(version)
        if share and version == old:
            raise ReleaseError(f"Version {version} is what serves; a canary is another version.")
        beside = self.state.models_of(old) if old in self.state.versions else ()
        spaces = [
            self._manifest(one).embedding_space() for one in (old, version) if one in self.state.versions
        ]
        conflict = spaces[0].conflict(spaces[-1])
        if conflict is not None:
            after = "running clients keep to the old one, and galleries have to be embedded again"
            if share:
                after = "clients do not mix two embedding spaces, so it is checked but gets no calls"
            _log.warning("Version %d has %s of version %d: %s", version, conflict, old, after)
        newest = max(self.state.loaded()[models[0]], default=old)
        if self.state.release.version is None and old not in (version, newest):
            # The newest was built since servers began: it would serve unchecked if they were reloaded.
            self.state.configure({model: [old] for model in beside}, Release(old))
        before = {
            path: path.read_text("utf-8")
            for model in self.state.family()
            for path in self.state.configs(model)
        }
        try:
            self.state.configure(
                {model: {old, version} if model in beside else {version} for model in models},
                Release(old, None if version == old else version),
            )
            self._reload(models, version, report)
            drift = self._check(version, models, max_drift_cosine, crops, report)
        except BaseException:  # Ctrl-C as well
            self.state.write(before)
            self._reload(models, None, report)
            _log.warning("Version %d was not promoted; what served before goes on serving", version)
            raise
        report("Letting calls go to it", None)
        history = history or [Promotion(old, now(), {})]
        if history[-1].version == version:  # an earlier attempt was killed after its record
            history = history[:-1]
        promotion = Promotion(version, now(), drift)
        self.state.write_history(history if share else [*history, promotion])  # first: `rollback` needs it
        stays = Release(old) if conflict is not None else Release(old, version, share)
        self.state.configure({}, stays if share else Release(version))
        self._reload(self.state.family(), version, report)
        return promotion

    def rollback(self, report: Progress = no_progress) -> int:
        """End a canary or a killed promotion, or else go back to the release before; returns the release.

        Raises:
            ReleaseError: There is none before, or a server does not load it.
        """
        release, history = self.state.release, self.state.history()
        target = release.version if release.canary is not None else None
        if target is None:
            if len(history) < 2:
                raise ReleaseError(f"No release of {self.name} was promoted over another one.")
            history = [*history[:-2], replace(history[-2], at=now())]
            target = history[-1].version
        elif history and history[-1].version == release.canary:  # killed after its record
            history = history[:-1]
        if target not in self.state.versions:
            raise ReleaseError(f"Version {target} of {self.name} is not on disk; promote another one.")
        # An older release stands by: clients that have not noticed yet still hold back a newer one.
        old = min(target, release.version or target)
        beside = self.state.models_of(old) if old in self.state.versions else ()
        self.state.configure(
            {m: {old, target} if m in beside else {target} for m in self.state.models_of(target)},
            Release(target),
        )
        self._reload(self.state.family(), target, report)
        self.state.write_history(history or [Promotion(target, now(), {})])
        return target

    def retire(self, version: int, report: Progress = no_progress) -> None:
        """Let the servers unload a version that is not the release; it stays on disk.

        Raises:
            ReleaseError: It is the release or its canary, or it is not loaded.
        """
        release = self.state.release
        if version in (release.version, release.canary):
            raise ReleaseError(f"Version {version} is in use: promote another one, or roll back, first.")
        loaded = self.state.loaded()
        holders = {model: sorted(held - {version}) for model, held in loaded.items() if version in held}
        if not holders:
            raise ReleaseError(f"No model of {self.name} has version {version} loaded.")
        empty = [model for model, held in holders.items() if not held]
        if empty:
            raise ReleaseError(f"{empty[0]} has no other version to serve; compile one first.")
        self.state.configure(holders, release)
        self._reload(tuple(holders), None, report)

    def prune(self, keep: int, *, dry_run: bool = False) -> list[int]:
        """Remove versions from the disk: neither loaded ones nor the newest ``keep``; returns the removed."""
        loaded = {version for held in self.state.loaded().values() for version in held}
        old = [
            one for one in self.state.versions[: max(0, len(self.state.versions) - keep)] if one not in loaded
        ]
        for version in () if dry_run else old:
            # The ONNX model last: it makes the version one of the list. Its manifest keeps the number taken.
            for model in family_models(self.name):
                self._remove(model, version)
        return old

    def _remove(self, model: str, version: int) -> None:
        folder = self._repository.root / model / str(version)
        if not folder.is_dir():
            return
        with self._repository.staging() as staged, self._repository.lock():
            folder.rename(staged / "removed")
            flush(folder.parent)
            if model != onnx_model(self.name):
                for path in (
                    *plan_manifest_paths(self._repository.root, model, version),
                    self._repository.manifest_path(model, version),
                ):
                    path.unlink(missing_ok=True)

    def _old(self, version: int) -> int:
        """The release; without one, the newest version that servers serve, or else the one before this."""
        if self.state.release.version is not None:
            return self.state.release.version
        served, family, versions = set[int | None](), self.state.family(), self.state.versions
        for url in self._urls:
            with closing(Connection(url, self._limits)) as connection:
                models = connection.ask().models or ()
            served |= {one.version for one in models if one.ready and one.name in family}
        known = [one for one in versions if one in served] or [one for one in versions if one < version]
        return max(known, default=version)

    def _manifest(self, version: int) -> ModelManifest:
        return ModelManifest.read(self._repository.manifest_path(onnx_model(self.name), version))

    def _reload(self, models: Sequence[str], version: int | None, report: Progress) -> None:
        """Let every server read the configurations of models, and wait until a version of them is ready.

        Raises:
            ReleaseError: A server does not load one.
        """
        for url in self._urls:
            with closing(Connection(url, self._limits)) as connection:
                for model in models:
                    report(f"Loading {model} at {url}", None)
                    target = Target(
                        url, model, version if version in self._repository.versions(model) else None
                    )
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
        onnx = self._repository.onnx(self.name, version)
        reference = reference_for_plans(
            onnx.path, None, crops, max_drift_cosine=max_drift_cosine, report=report
        )
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
        golden = self._repository.golden(model, version)
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
