"""A model repository on this machine, read only: versions, plans and reference embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import DeploymentError, ManifestError, ModelNotFoundError
from .embedding_space import EmbeddingSpace, PrecisionClass
from .files import sha256_of
from .golden import GoldenReference
from .manifest import MODEL_FILE, ModelManifest, manifest_path
from .naming import family, is_plan, made_from, onnx_model, plan_model
from .plan_manifest import PlanManifest, SiblingManifest, plan_manifest_paths


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

    def content(self) -> bytes:
        """Read the file."""
        return self.path.read_bytes()


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """A plan, whose SHA-256 is compared with its manifest's when it is loaded.

    ``onnx`` is the manifest of the ONNX model that it was built from.
    """

    model: str
    version: int
    path: Path
    manifest: PlanManifest
    onnx: ModelManifest


@dataclass(frozen=True, kw_only=True)
class LocalSibling:
    """A version of an ONNX model's sibling, whose file had the SHA-256 of its manifest when it was found.

    ``onnx`` is the manifest of the ONNX model that it was made from.
    """

    model: str
    version: int
    path: Path
    manifest: SiblingManifest
    onnx: ModelManifest


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

    def onnx(self, name: str, version: int | None = None, space: EmbeddingSpace | None = None) -> LocalOnnx:
        """Find a version of ``{name}_onnx``.

        Args:
            name: Name of the family of models.
            version: Its version; None means the newest.
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
        for number in reversed(versions) if version is None else (version,):
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

    def plan(self, name: str, sm: str, space: EmbeddingSpace | None = None) -> LocalPlan:
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
        wanted = space or self._newest_space(name)
        refused = []
        for version in reversed(self.versions(model)):
            path = manifest_path(self.root, model, version, sm)
            if not path.is_file():
                continue
            manifest = PlanManifest.read(path)
            onnx = self._onnx_of(manifest.identity.onnx_sha256, path, name, version)
            conflict = wanted and wanted.conflict(onnx.embedding_space(manifest.precision_class))
            if conflict is None:
                file = self.root / model / str(version) / f"{name}-{manifest.identity.precision}-sm{sm}.plan"
                return LocalPlan(model=model, version=version, path=file, manifest=manifest, onnx=onnx)
            refused.append(f"version {version} has {conflict}")
        raise ModelNotFoundError(
            f"There is no plan of {name} for sm{sm} in {self.root.absolute()}"
            f"{''.join(f'; {reason}' for reason in refused)}. Run `arcface-builder compile --name {name}` on "
            "this GPU."
        )

    def sibling(self, model: str, space: EmbeddingSpace | None = None) -> LocalSibling:
        """Find the newest version of a model that is made from an ONNX model and is not a plan.

        Args:
            model: Its name, for example "arcface_r100_openvino".
            space: The embedding space that it must not conflict with; None allows any.

        Raises:
            ModelNotFoundError: There is no such version.
            ManifestError: A manifest is missing or wrong, or the file has another SHA-256.
        """
        name, refused = family(model), []
        for version in reversed(self.versions(model)):
            record = manifest_path(self.root, model, version)
            manifest = SiblingManifest.read(record)
            onnx = self._onnx_of(manifest.onnx_sha256, record, name, version)
            conflict = space and space.conflict(onnx.embedding_space(manifest.precision_class))
            if not conflict:
                path = self.root / model / str(version) / manifest.model_file.name
                _check_sha256(path, manifest.model_file.sha256)
                return LocalSibling(model=model, version=version, path=path, manifest=manifest, onnx=onnx)
            refused.append(f"; version {version} has {conflict}")
        raise ModelNotFoundError(
            f"There is no {model} in {self.root.absolute()}{''.join(refused)}. Run `arcface-builder compile "
            f"--name {name} --runtime {model.removeprefix(f'{name}_')}`."
        )

    def golden(self, model: str, version: int) -> GoldenReference | None:
        """The reference embeddings of a version; those of a plan are its ONNX sibling's.

        Returns:
            None when there is no manifest here, or it is about other golden crops.

        Raises:
            ManifestError: A manifest is wrong.
        """
        manifest = self.manifest(model, version)
        if manifest is None or manifest.golden_embeddings is None:
            return None
        precision_class = self._precision_class(model, version) if is_plan(model) else "float"
        return GoldenReference(manifest.golden_embeddings, manifest.embedding_space(precision_class))

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
            if (manifest := ModelManifest.read(path)).source.sha256 == source_sha256
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
        versions = self.versions(model)
        if not versions:
            return None
        return ModelManifest.read(manifest_path(self.root, model, versions[-1])).embedding_space(None)

    def _precision_class(self, model: str, version: int) -> PrecisionClass | None:
        """That of all plans of a version; None when there are none, or plans of both classes."""
        paths = plan_manifest_paths(self.root, model, version)
        classes = {PlanManifest.read(path).precision_class for path in paths}
        return classes.pop() if len(classes) == 1 else None


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
