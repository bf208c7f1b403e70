"""Build: a source model in, a checked version of a Triton model out."""

from __future__ import annotations

import hashlib
import logging
import shlex
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from arcface_client.contract import Progress, no_progress
from arcface_client.errors import ManifestError
from arcface_client.models.golden import cannot_tell_apart, golden_crops, golden_sha256, to_text
from arcface_client.models.manifest import (
    MODEL_FILE,
    Golden,
    ModelFile,
    ModelManifest,
    ModelParity,
    Preprocessing,
    contract_of,
)
from arcface_client.models.naming import onnx_model
from arcface_client.runtimes.onnxruntime import OnnxRuntime

from .check.accuracy import check_onnx_model
from .graph.serving import takes_one_crop
from .repository.config import CONFIG_FILE, ServingOptions, check_width, config_text, onnx_config
from .repository.publish import ModelRepository, check_name, now, tool_versions
from .source.load import Source, build_arguments
from .source.model import labels_of

_log = logging.getLogger(__name__)

DEFAULT_REPOSITORY = Path("model_repository")


@dataclass(frozen=True)
class BuiltModel:
    """A version that was published, in the folder ``path``."""

    model: str
    version: int
    path: Path
    manifest: ModelManifest


def build(
    source: Source,
    *,
    name: str,
    repository: Path = DEFAULT_REPOSITORY,
    options: ServingOptions | None = None,
    report: Progress = no_progress,
) -> BuiltModel:
    """Build the next version of the model ``{name}_onnx``.

    Nothing is published unless the file gives the source model's embeddings; see ``check.accuracy``.

    Args:
        source: What to build from.
        name: Name of the family of models, for example "arcface_r100".
        repository: Folder of the model repository; a missing one is made.
        options: How to serve all versions of the model; by default as they are served now.
        report: Called with each stage.

    Raises:
        BuilderError: See ``errors``; the repository is as it was.
        MissingExtraError: The source needs a package that is not installed.
    """
    model = onnx_model(check_name(name))
    target = ModelRepository(repository)

    report("Reading the source model", None)
    loaded = source.load()
    origin = loaded.origin
    report("Building the serving graph", None)
    if origin.synthetic:
        _log.warning("%s holds synthetic weights: it cannot tell faces apart", origin.name)
    for issue in loaded.issues:
        if issue not in loaded.warnings:
            _log.info("Found: %s", issue)
    for warning in loaded.warnings:
        _log.warning("%s: %s", origin.name, warning)
    golden = loaded.embed(golden_crops())
    dim = golden.shape[1]
    check_width(target.root / model / CONFIG_FILE, dim)
    alike = cannot_tell_apart(golden)
    if alike and not origin.synthetic:
        _log.warning("%s: %s", origin.name, alike)
    serving = options or ServingOptions()
    if takes_one_crop(loaded.served.model):
        serving = replace(serving, max_batch_size=1)
    _log.info("%s: the network sees %s", origin.name, loaded.normalisation)
    metadata = {"source": origin.name, "source_sha256": origin.sha256, **labels_of(origin)}
    graph = loaded.serving_graph(metadata)

    with target.staging() as staged:
        path = staged / MODEL_FILE
        content = graph.SerializeToString(deterministic=True)
        path.write_bytes(content)
        report("Comparing it with the source model", None)
        with closing(OnnxRuntime(path)) as runtime:
            accuracy = check_onnx_model(loaded.embed, runtime.embed, computed_by=loaded.runs)
        draft = ModelManifest(
            model=model,
            version=0,  # known once it is published
            created=now(),
            source=origin,
            source_location=source.location(),
            repairs=tuple(str(issue) for issue in loaded.issues),
            model_file=ModelFile(
                name=MODEL_FILE, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
            ),
            preprocessing=Preprocessing(
                mean=loaded.normalisation.mean,
                std=loaded.normalisation.std,
                channels=loaded.channels,
                caller_mean=loaded.caller.mean,
                caller_std=loaded.caller.std,
                found_in=loaded.caller_from,
                assumed=loaded.assumed,
            ),
            compared_with=loaded.runs,
            parity=ModelParity(**asdict(accuracy)),
            golden=Golden(crops_sha256=golden_sha256(), embeddings=to_text(golden)),
            contract=contract_of(dim),
            rebuild_command=_command(source, name, repository, options),
            tools=tool_versions(),
        )
        version = target.publish(
            model,
            staged,
            config=config_text(onnx_config(model, serving, dim)),
            keep_config=options is None,
            manifest=lambda version: replace(draft, version=version).to_json(),
        )
    built = replace(draft, version=version)
    _warn_of_another_space(target, built)
    return BuiltModel(model, version, target.root / model / str(version), built)


def _warn_of_another_space(repository: ModelRepository, built: ModelManifest) -> None:
    """Warn if the version before was another model, whose galleries are of no use to this one."""
    earlier = [version for version in repository.versions(built.model) if version < built.version]
    before = None
    with suppress(ManifestError):  # the other version is not part of this build
        before = repository.manifest(built.model, earlier[-1]) if earlier else None
    conflict = before and before.embedding_space().conflict(built.embedding_space())
    if before and conflict:
        _log.warning(
            "%s version %d has %s of version %d: their embeddings cannot be compared; embed galleries again, "
            "or use another --name",
            built.model,
            built.version,
            conflict,
            before.version,
        )


def _command(source: Source, name: str, repository: Path, options: ServingOptions | None) -> str:
    where = ["--name", name, "--repository", str(repository)]
    serving = options.arguments() if options else []
    return shlex.join(["arcface-builder", "build", *where, *build_arguments(source), *serving])
