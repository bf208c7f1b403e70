"""Which versions of a family a repository releases: in its configurations, and in a record beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from arcface_client.models.naming import family_models, onnx_model
from arcface_client.models.release import CANARY, CANARY_SHARE, RELEASE, Release
from arcface_client.models.schema import expectation

from ..disk import flush, replace_text
from ..errors import ReleaseError, RepositoryError
from .config import CONFIG_FILE, config_text, read_config
from .publish import ModelRepository, check_name


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


class ReleaseState:
    """What a repository says of a family's versions; everything is read anew and written at once.

    Raises:
        OptionError: The name is not allowed.
        RepositoryError: There is no such model.
    """

    def __init__(self, repository: ModelRepository, name: str) -> None:
        self.name = check_name(name)
        self._repository = repository
        self._record = repository.root / f"{name}.releases.json"
        if not self.versions:
            raise RepositoryError(
                f"There is no {onnx_model(name)} in {repository.root}; run "
                f"`arcface-builder build --name {name}`."
            )

    @property
    def versions(self) -> list[int]:
        """The versions on disk, oldest first."""
        return self._repository.versions(onnx_model(self.name))

    @property
    def release(self) -> Release:
        """What the configuration of the ONNX model says."""
        parameters = self._config(onnx_model(self.name)).parameters
        return Release.read({name: one.string_value for name, one in parameters.items()})

    def family(self) -> tuple[str, ...]:
        """The family's models that are in the repository."""
        return tuple(model for model in family_models(self.name) if self._repository.versions(model))

    def models_of(self, version: int) -> tuple[str, ...]:
        """The models that have a version, whole.

        Raises:
            ReleaseError: No ONNX model has it, or it lacks the plan of a GPU that is served.
        """
        if version not in self.versions:
            known = ", ".join(map(str, self.versions))
            raise ReleaseError(f"{onnx_model(self.name)} has no version {version}; it has {known}.")
        models = tuple(model for model in self.family() if version in self._repository.versions(model))
        for model in models:
            for capability, file in self._config(model).cc_model_filenames.items():
                if not (self._repository.root / model / str(version) / file).is_file():
                    raise ReleaseError(
                        f"{model} version {version} has no plan for compute capability {capability}, which "
                        f"is served: compile it there, or remove the model's folder {version}."
                    )
        return models

    def loaded(self) -> dict[str, set[int]]:
        """The versions that Triton is told to load, by model."""
        loaded = {}
        for model in self.family():
            policy, versions = self._config(model).version_policy, self._repository.versions(model)
            if policy.specific.versions:
                loaded[model] = {*policy.specific.versions} & {*versions}
            else:
                newest = policy.latest.num_versions or 1
                loaded[model] = {*(versions if policy.HasField("all") else versions[-newest:])}
        return loaded

    def configs(self, model: str) -> list[Path]:
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

    def configure(self, versions: Mapping[str, Collection[int]], release: Release) -> None:
        """Say in all configurations which version is released, and which ones some models load."""
        texts = {}
        for model in self.family():
            for path in self.configs(model):
                config = self._read(path)
                for name in (RELEASE, CANARY, CANARY_SHARE):
                    config.parameters.pop(name, None)
                for name, value in release.parameters().items():
                    config.parameters[name].string_value = value
                if model in versions:
                    config.version_policy.specific.versions[:] = sorted(versions[model])
                texts[path] = config_text(config)
        self.write(texts)

    def write(self, texts: Mapping[Path, str]) -> None:
        """Replace files, each by one rename; those that have this text already stay untouched."""
        with self._repository.staging() as staged, self._repository.lock():
            for path, text in texts.items():
                if not path.is_file() or path.read_text("utf-8") != text:
                    replace_text(path, text, via=staged.parent)
                    flush(path.parent)

    def history(self) -> list[Promotion]:
        """The record of releases, oldest first.

        Raises:
            RepositoryError: It is damaged.
        """
        if not self._record.is_file():
            return []
        try:
            return TypeAdapter(list[Promotion]).validate_json(self._record.read_bytes())
        except ValidationError as error:
            raise RepositoryError(
                f"{self._record} is not a record of releases ({expectation(error.errors()[0])}); restore it, "
                "or remove it: which version is released is in the configurations."
            ) from error

    def write_history(self, history: Sequence[Promotion]) -> None:
        """Replace the record of releases."""
        self.write({self._record: json.dumps([asdict(one) for one in history], indent=1) + "\n"})
