"""``arcface-client status``: the servers' models, why one is not ready, and the settings' embedder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import ArcFaceError, DeploymentError, ManifestError
from .connection import Server
from .terminal import DONE, FAILED, examples, print_json, print_table, say, with_shared_options

if TYPE_CHECKING:
    from ..models.repository import LocalModels
    from ..settings import PipelineSettings, TritonSettings
    from ..triton.status import ModelStatus, ServerStatus

_TIMED_CALLS: Final = 5

EPILOG: Final = examples(
    "arcface-client status --url localhost:8001",
    "arcface-client status --backend triton --json",
    exit_codes="0 a server has a model ready (with --json: the embedder works), 1 failed",
)


@with_shared_options
def status(
    server: Server,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, which also describes the embedder.")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="With --json: the embedder to report: insightface, cudnn, tensorrt, openvino, onnxruntime "
            "or triton (default: embedding.backend).",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="With --json: its device: cpu, cuda, cuda:N or auto (default: embedding.device)."),
    ] = None,
) -> int:
    """Show the servers, their models and versions, and why one is not ready.

    If a model's manifest is in embedding.model_repository, the channel order and the normalisation of its
    network are shown, too, and which of them was assumed when it was built.

    With --json, the embedder that the settings give is described, too: which model embeds, how fast, how
    exactly, and why a better one does not. To find that out, a few crops are embedded.
    """
    if not as_json and (backend or device):
        raise typer.BadParameter(
            "--backend and --device say which embedder --json reports; give --json as well."
        )
    from ..models.repository import LocalModels  # brings pydantic, for which `--help` need not wait

    flags = {"embedding.backend": backend, "embedding.device": device}
    settings = server.settings(**flags)
    triton, models = settings.triton, LocalModels(settings.embedding.model_repository)
    servers = [_ask(triton, url) for url in (triton.url if as_json else triton.required_urls())]
    if as_json:
        embedder = _embedder(settings)
        print_json({"servers": [_as_dict(each, models) for each in servers], "embedder": embedder})
        return DONE if embedder["problem"] is None else FAILED
    for each in servers:
        _show(each, models)
    return DONE if any(model.ready for each in servers for model in each.models) else FAILED


def _ask(triton: TritonSettings, url: str) -> ServerStatus:
    from ..triton.status import ServerStatus

    with triton.client(url) as client:
        try:
            return client.status()
        except ArcFaceError as error:
            return ServerStatus(url, None, ready=False, problem=str(error))


def _pixels(model: ModelStatus, models: LocalModels) -> str | None:
    """What a model does to the pixels, if its manifest is here."""
    try:
        manifest = None if model.version is None else models.manifest(model.name, model.version)
    except ManifestError as error:
        return str(error)
    return None if manifest is None else str(manifest.preprocessing)


def _as_dict(server: ServerStatus, models: LocalModels) -> dict[str, Any]:
    described = [dataclasses.asdict(model) | {"pixels": _pixels(model, models)} for model in server.models]
    return dataclasses.asdict(server) | {"models": described}


def _show(server: ServerStatus, models: LocalModels) -> None:
    if server.problem:
        say(f"arcface-client: {server.problem}", style="red")
        return
    print(f"Triton {server.version} at {server.url}: {'ready' if server.ready else 'not ready'}")
    rows = [
        (model.name, model.version, _state(model), _pixels(model, models), model.reason)
        for model in server.models
    ]
    print_table(("model", "version", "state", "pixels", "reason"), rows)


def _state(model: ModelStatus) -> str:
    return f"{model.state or 'NOT LOADED'}{f', {model.role}' if model.role else ''}"


def _embedder(settings: PipelineSettings) -> dict[str, Any]:
    """The embedder's diagnostics after a few real calls, and what went wrong."""
    from ..backends.factory import make_backend
    from ..models.golden import golden_crops

    problem = None
    try:
        backend = make_backend(settings)
    except DeploymentError as error:  # settings that leave no candidate
        return {"problem": str(error)}
    with backend as embedder:
        try:
            embedder.ensure_ready()
            for _ in range(_TIMED_CALLS):
                embedder.encode(golden_crops())
        except ArcFaceError as error:
            problem = str(error)
        return embedder.diagnostics().to_dict() | {"problem": problem}
