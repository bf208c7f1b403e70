"""A model repository on this machine, read only: versions, plans and reference embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import DeploymentError, ManifestError, ModelNotFoundError
from .embedding_space import FLOAT, EmbeddingSpace, PrecisionClass
from .files import sha256_of
from .golden import GoldenReference
from .manifest import MODEL_FILE, ModelManifest, manifest_path
from .naming import family, family_models, is_plan, made_from, onnx_model, plan_model, sibling_model
from .plan_manifest import PlanManifest, SiblingManifest, plan_manifest_paths

Made = TypeVar("Made", PlanManifest, SiblingManifest)


@dataclass(frozen=True, kw_only=True)
class LocalOnnx:
    """A version of an ONNX model, whose file had the SHA-256 of its manifest when it was found."""

    model: str
    version: int
    path: Path
    manifest: ModelManifest

    @property
    def name(self) -> str:
        """The name of its family, for example "arcface_r100"."""
        return family(self.model)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return self.manifest.model_file.sha256

    @property
    def source_sha256(self) -> str:
        """SHA-256 of the source model that it was built from."""
        return self.manifest.source.sha256

    @property
    def space(self) -> EmbeddingSpace:
        """Its embedding space."""
        return self.manifest.embedding_space()

    @property
    def reference(self) -> GoldenReference | None:
        """What its golden embeddings must be; None when unknown."""
        return _reference(self.manifest)

    def content(self) -> bytes:
        """Read the file."""
        return self.path.read_bytes()


@dataclass(frozen=True, kw_only=True)
class LocalMade(Generic[Made]):
    """A version of what is made from an ONNX model, whose manifest is ``onnx``.

    The file of a sibling had the SHA-256 of its manifest when it was found; a plan's is compared when it is
    loaded.
    """

    model: str
    version: int
    path: Path
    manifest: Made
    onnx: ModelManifest

    @property
    def space(self) -> EmbeddingSpace:
        """Its embedding space."""
        return self.onnx.embedding_space(self.manifest.precision_class)

    @property
    def reference(self) -> GoldenReference | None:
        """What its golden embeddings must be; None when unknown."""
        return _reference(self.onnx, [self.manifest])


class LocalModels:
    """The models of a repository and their manifests.

    Args:
        root: The repository's folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self, model: str) -> list[int]:
        """The versions of a model, oldest first."""
        folder = self.root / model
        names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
        return sorted(int(name) for name in names if name.isdecimal())

    def released(self, model: str) -> list[int]:
        """The versions that calls may go to, oldest first: up to the release, where there is one."""
        record, versions = self.root / f"{family(model)}.releases.json", self.versions(model)
        if not record.is_file():
            return versions
        try:
            release = int(json.loads(record.read_bytes())[-1]["version"])
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise ManifestError(f"{record} is not a record of releases ({error}); restore it.") from error
        return [version for version in versions if version <= release]

    def onnx(self, name: str, version: int | None = None, space: EmbeddingSpace | None = None) -> LocalOnnx:
        """Find a version of ``{name}_onnx``.

        Args:
            name: Name of the family of models.
            version: Its version; None means the release, or the newest where nothing was released.
            space: The embedding space that the newest must not conflict with; None allows any.

        Raises:
            ModelNotFoundError: There is no such version.
            ManifestError: Its manifest is missing or wrong, or its file has another SHA-256.
        """
        model = onnx_model(name)
        versions = self.versions(model)
        if not versions or version not in (None, *versions):
            wanted = model if version is None else f"version {version} of {model}"
            raise ModelNotFoundError(
                f"There is no {wanted} in {self.root.absolute()}; name another model or repository, or run "
                f"`arcface-builder build --name {name}`."
            )
        refused = []
        for number in reversed(self.released(model)) if version is None else (version,):
            manifest = ModelManifest.read(manifest_path(self.root, model, number))
            conflict = space.conflict(manifest.embedding_space()) if space and version is None else None
            if conflict is None:
                path = self.root / model / str(number) / MODEL_FILE
                _check_sha256(path, manifest.model_file.sha256)
                return LocalOnnx(model=model, version=number, path=path, manifest=manifest)
            refused.append(f"version {number} has {conflict}")
        raise ModelNotFoundError(
            f"No version of {model} in {self.root.absolute()} has the embedding space in use: "
            f"{'; '.join(refused)}. Make a new backend; its embeddings need a new gallery."
        )

    def plan(self, name: str, sm: str, space: EmbeddingSpace | None = None) -> LocalMade[PlanManifest]:
        """Find the newest plan for a GPU architecture in an embedding space.

        Args:
            name: Name of the family of models.
            sm: The GPU's architecture, for example "90".
            space: The embedding space; None means that of the newest ``{name}_onnx``.

        Raises:
            ModelNotFoundError: There is no such plan.
            ManifestError: A manifest is missing or wrong.
        """
        model = plan_model(name)
        newest = self._newest_space(name)
        wanted = space.completed(newest) if space and newest else space or newest
        refused = []
        for version in reversed(self.released(model)):
            path = manifest_path(self.root, model, version, sm)
            if not path.is_file():
                continue
            manifest = PlanManifest.read(path)
            onnx = self._onnx_of(manifest.identity.onnx_sha256, path, name, version)
            file = self.root / model / str(version) / f"{name}-{manifest.identity.precision}-sm{sm}.plan"
            plan = LocalMade(model=model, version=version, path=file, manifest=manifest, onnx=onnx)
            conflict = wanted and wanted.conflict(plan.space)
            if conflict is None:
                return plan
            refused.append(f"version {version} has {conflict}")
        raise ModelNotFoundError(
            f"There is no plan of {name} for sm{sm} in {self.root.absolute()}"
            f"{''.join(f'; {reason}' for reason in refused)}. Run `arcface-builder compile --name {name}` on "
            "this GPU."
        )

    def sibling(self, model: str, space: EmbeddingSpace | None = None) -> LocalMade[SiblingManifest]:
        """Find the newest version of a model that is made from an ONNX model and is not a plan.

        Args:
            model: Its name, for example "arcface_r100_openvino".
            space: The embedding space that it must not conflict with; None allows any.

        Raises:
            ModelNotFoundError: There is no such version.
            ManifestError: A manifest is missing or wrong, or the file has another SHA-256.
        """
        name, refused = family(model), []
        for version in reversed(self.released(model)):
            record = manifest_path(self.root, model, version)
            manifest = SiblingManifest.read(record)
            onnx = self._onnx_of(manifest.onnx_sha256, record, name, version)
            path = self.root / model / str(version) / manifest.model_file.name
            found = LocalMade(model=model, version=version, path=path, manifest=manifest, onnx=onnx)
            conflict = space and space.conflict(found.space)
            if not conflict:
                _check_sha256(path, manifest.model_file.sha256)
                return found
            refused.append(f"; version {version} has {conflict}")
        which = " for the next version, in the precision that embedding.space asks for" if refused else ""
        raise ModelNotFoundError(
            f"There is no {model} in {self.root.absolute()}{''.join(refused)}. Run `arcface-builder compile "
            f"--name {name} --runtime {model.removeprefix(f'{name}_')}`{which}."
        )

    def models(self, name: str) -> tuple[str, ...]:
        """All models of a family, the one to prefer first: the plans before cuDNN if they were faster.

        That is known of the newest version for which ``compile`` has measured both on one kind of GPU.
        """
        usual = family_models(name)
        cudnn, plans = sibling_model(name, "cudnn"), plan_model(name)
        for version in reversed(self.released(cudnn)):
            try:
                fused = SiblingManifest.read(manifest_path(self.root, cudnn, version))
                built = [PlanManifest.read(path) for path in plan_manifest_paths(self.root, plans, version)]
            except ManifestError:  # the golden check will say what is wrong with it
                continue
            rivals = [plan.faces_per_s or 0 for plan in built if plan.gpu_name == fused.device]
            if fused.faces_per_s and any(rivals):
                if max(rivals) <= fused.faces_per_s:
                    return usual
                return plans, *(model for model in usual if model != plans)
        return usual

    def golden(self, model: str, version: int) -> GoldenReference | None:
        """The reference embeddings of a version; what is made of an ONNX model has its own in int8 alone.

        Returns:
            None when there is no manifest here, or it is about other golden crops.

        Raises:
            ManifestError: A manifest is wrong.
        """
        manifest = self.manifest(model, version)
        if manifest is None:
            return None
        return _reference(manifest, self._made(model, version), unknown=None if is_plan(model) else FLOAT)

    def manifest(self, model: str, version: int) -> ModelManifest | None:
        """The manifest of a version, that of its ONNX sibling for a plan; None when it is not here.

        Raises:
            ManifestError: It is wrong.
        """
        path = manifest_path(self.root, made_from(model) or model, version)
        return ModelManifest.read(path) if path.is_file() else None

    def built_from(self, source_sha256: str) -> ModelManifest | None:
        """The newest manifest of an ONNX model that was built from a source; None if there is none here."""
        found = [
            manifest
            for path in self.root.glob(f"{onnx_model('*')}-*.manifest.json")
            if source_sha256.encode() in path.read_bytes()  # a damaged one of another model is not read
            and (manifest := ModelManifest.read(path)).source.sha256 == source_sha256
        ]
        return max(found, key=lambda manifest: manifest.created, default=None)

    def only_plan(self, model: str, version: int) -> PlanManifest | None:
        """The manifest of a version's plan; None when it has no plan, or several of which any may serve.

        Raises:
            ManifestError: The manifest is wrong.
        """
        paths = plan_manifest_paths(self.root, model, version)
        return PlanManifest.read(paths[0]) if len(paths) == 1 else None

    def _onnx_of(self, sha256: str, manifest: Path, name: str, version: int) -> ModelManifest:
        """The manifest of the ONNX model that a version was made from."""
        onnx = ModelManifest.read(manifest_path(self.root, onnx_model(name), version))
        if onnx.model_file.sha256 != sha256:
            raise ManifestError(
                f"{manifest} describes what was made from an ONNX model with SHA-256 {sha256:.12}...; "
                f"{onnx_model(name)} version {version} has {onnx.model_file.sha256:.12}... "
                "Run `arcface-builder build` and compile that version."
            )
        return onnx

    def _newest_space(self, name: str) -> EmbeddingSpace | None:
        """That of the newest ``{name}_onnx``, for any class of precision; None when there is no version."""
        model = onnx_model(name)
        versions = self.released(model)
        if not versions:
            return None
        return ModelManifest.read(manifest_path(self.root, model, versions[-1])).embedding_space(None)

    def _made(self, model: str, version: int) -> list[PlanManifest] | list[SiblingManifest]:
        """The manifests of what was made from an ONNX model as this version."""
        if is_plan(model):
            return [PlanManifest.read(path) for path in plan_manifest_paths(self.root, model, version)]
        path = manifest_path(self.root, model, version)
        return [SiblingManifest.read(path)] if made_from(model) and path.is_file() else []


def _reference(
    onnx: ModelManifest,
    made: Sequence[PlanManifest | SiblingManifest] = (),
    *,
    unknown: PrecisionClass | None = FLOAT,
) -> GoldenReference | None:
    """The reference of a version of an ONNX model, or of all that was ``made`` from it as one version.

    ``unknown`` is the class of precision where no manifest of what was made is here.
    """
    # Plans of one version are of several architectures; where their classes differ, any may serve.
    classes = {one.precision_class for one in made}
    known = classes.pop() if len(classes) == 1 else None
    space = onnx.embedding_space(known if made else unknown)
    own = made[0].golden if made and space.precision_class else None
    golden = onnx.golden.known if own is None else own.known
    drift = max((one.parity.largest_drift_cosine for one in made if one.golden), default=0.0)
    return None if golden is None else GoldenReference(golden, space, drift)


def _check_sha256(path: Path, expected: str) -> None:
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}.") from error
    if actual != expected:
        raise ManifestError(
            f"{path} has SHA-256 {actual:.12}...; its manifest says {expected:.12}... "
            "One of them was changed: build the next version."
        )
