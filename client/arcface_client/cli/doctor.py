"""``arcface-client doctor``: what is wrong with this machine and with the deployment, and what to do."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from ..errors import ArcFaceError, ModelNotFoundError, NotReleasedError
from ..observability.versions import package_versions
from .connection import Server
from .terminal import DONE, FAILED, examples, print_json, print_table, with_shared_options

if TYPE_CHECKING:
    from ..models.repository import LocalModels
    from ..settings import PipelineSettings, TritonSettings

EPILOG: Final = examples(
    "arcface-client doctor --url localhost:8001 --name arcface_r50",
    "arcface-client doctor --backend onnxruntime --json",
    exit_codes="0 nothing is wrong (there may be warnings), 1 something is",
)

_DEADLINE_S: Final = 5.0
_UNAVAILABLE: Final = 'docs/operations.md, "A model is unavailable"'
_SHM: Final = Path("/dev/shm")
_SHM_MB: Final = 256
_CACHE_MB: Final = 2048
_RENEW_DAYS: Final = 14

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: What was looked at.
        level: "ok", "warning" (it works, perhaps not as you expect) or "error".
        found: What was found; an error's own words say what to do as well.
        do: What to do; None if nothing, or if ``found`` says it.
    """

    check: str
    level: Level
    found: str
    do: str | None = None


def _warned(check: str, is_odd: bool, found: str, do: str) -> Finding:
    return Finding(check, "warning", found, do) if is_odd else Finding(check, "ok", found)


@with_shared_options
def doctor(
    server: Server,
    backend: Annotated[
        str,
        typer.Option(metavar="TYPE", help="Embedder whose models are checked, as --backend of `status`."),
    ] = "triton",
    model: Annotated[
        str | None,
        typer.Option(
            "--name",
            "--model",
            metavar="NAME",
            help="Check NAME_onnx and its siblings (default: embedding.model).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Check this machine and a deployment, and say what to do about what is wrong.

    Looks at the versions, the GPU and its driver, memory and CPU limits, the model repository and its plans,
    the servers with their certificates and models, and the bucket. Then lets every model embed crops whose
    embeddings are known (the golden check).
    """
    settings = server.settings(**{"embedding.backend": backend, "embedding.model": model})
    findings = list(_findings(settings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(one.level, one.check, one.found, one.do or "") for one in findings]
        print_table(("", "check", "found", "what to do"), rows)
    return FAILED if any(finding.level == "error" for finding in findings) else DONE


def _findings(settings: PipelineSettings) -> Iterator[Finding]:
    from ..models.repository import LocalModels

    models, name = LocalModels(settings.embedding.model_repository), settings.embedding.model
    yield from _machine()
    sm = yield from _gpu()
    yield from _repository(models, name, sm)
    if settings.embedding.backend == "triton":
        for url in settings.triton.required_urls():
            yield from _server(settings.triton, url)
    yield from _golden(settings)
    yield from _bucket(settings.tensorrt.engine_s3_bucket)


def _machine() -> Iterator[Finding]:
    from ..evaluation.report import versions
    from ..models.files import cache_folder
    from ..runtimes.base import usable_cores

    yield Finding("versions", "ok", ", ".join(f"{name} {text}" for name, text in versions(None).items()))
    usable, cores = usable_cores(), os.cpu_count() or 0
    yield Finding("processor", "ok", f"{usable} of {cores} CPUs can be used (cores, affinity, quota)")
    if _SHM.is_dir():
        size_mb = shutil.disk_usage(_SHM).total >> 20
        do = f"where Triton runs with Python backends, give it {_SHM_MB} MiB or more (shm_size)"
        yield _warned("/dev/shm", size_mb < _SHM_MB, f"{size_mb:,} MiB", do)
    try:
        folder = cache_folder()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free_mb = shutil.disk_usage(there).free >> 20
    except (ArcFaceError, OSError) as error:
        yield Finding("cache folder", "warning", str(error))
        return
    if not os.access(there, os.W_OK):
        yield Finding("cache folder", "warning", f"{there} cannot be written", "set ARCFACE_CACHE_DIR")
    else:
        do = "free some: plans and kernels are kept there"
        yield _warned("cache folder", free_mb < _CACHE_MB, f"{folder}, {free_mb:,} MiB free", do)


def _gpu() -> Generator[Finding, None, str | None]:
    """Yields the findings, and returns the architecture of the first GPU; None without one."""
    from ..evaluation.benchmark import machine

    gpus: list[str] = machine()["gpus"]
    try:
        from ..runtimes import cuda
    except ImportError:
        what = "; ".join(gpus) or "nvidia-smi shows none"
        do = "to use it in this process: pip install 'arcface-triton[tensorrt]'"
        yield _warned("GPU", bool(gpus), what, do)
        return None
    try:
        count = cuda.device_count()
        sm = cuda.compute_capability(0).replace(".", "") if count else None
        free = f", {cuda.free_bytes() >> 20:,} MiB free on the first" if count else ""
    except ArcFaceError as error:
        yield Finding("GPU", "error", str(error))
        return None
    if gpus and not count:
        yield Finding("GPU", "error", f"{'; '.join(gpus)}, but CUDA finds none", "check CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("GPU", "ok", f"{'; '.join(gpus)}{free}, sm{sm}" if count else "none")
    return sm


def _repository(models: LocalModels, name: str, sm: str | None) -> Iterator[Finding]:
    from ..models.files import sha256_of
    from ..models.naming import plan_model
    from ..models.plan_manifest import PlanManifest, plan_manifest_paths
    from ..models.signature import PUBLIC_KEY

    check = "model repository"
    if not models.root.is_dir():
        found = (
            f"{models.root.absolute()} is not here: the servers' models cannot be checked against manifests"
        )
        yield Finding(check, "warning", found, "set embedding.model_repository")
        return
    try:
        onnx = models.onnx(name)
        signed = ", which is signed" if os.environ.get(PUBLIC_KEY) else ""
        yield Finding(check, "ok", f"{onnx.model}:{onnx.version}, as its manifest says{signed}")
        plans = [
            PlanManifest.read(path)
            for path in plan_manifest_paths(models.root, plan_model(name), onnx.version)
        ]
    except ArcFaceError as error:
        yield Finding(check, "error", str(error))
        return
    installed = package_versions(["tensorrt"]).get("tensorrt")
    for plan in plans:
        key = plan.identity
        found = f"{key.filename} by TensorRT {key.tensorrt_version}"
        file = models.root / plan_model(name) / str(onnx.version) / key.filename
        if not file.is_file() or sha256_of(file) != plan.plan_sha256:
            do = "do not serve it; build and compile the next version"
            yield Finding("plan", "error", f"{file} is not the file of its manifest", do)
        elif installed in (None, key.tensorrt_version):
            yield Finding("plan", "ok", found)
        else:
            do = "compile with that one, or serve with the image of the release that has this one"
            yield Finding("plan", "warning", f"{found}; {installed} is installed here", do)
    if sm and plans and sm not in {plan.identity.sm for plan in plans}:
        do = f"arcface-builder compile --name {name}"
        yield Finding("plan", "warning", f"none for this machine's GPU (sm{sm})", do)
    yield from _sibling(models, f"{name}_cudnn")
    yield from _sibling(models, f"{name}_openvino")


def _sibling(models: LocalModels, model: str) -> Iterator[Finding]:
    try:
        manifest = models.sibling(model).manifest
    except ModelNotFoundError:
        return
    except ArcFaceError as error:
        yield Finding(model, "error", str(error))
        return
    try:
        if manifest.runtime == "cudnn":
            from ..runtimes.cudnn.runtime import cudnn_version

            here: str | None = cudnn_version()
        else:
            here = package_versions([manifest.runtime]).get(manifest.runtime)
    except (ArcFaceError, ImportError):
        here = None
    found = f"checked with {manifest.runtime} {manifest.runtime_version}"
    if here is None or here.startswith(manifest.runtime_version):
        yield Finding(model, "ok", found)
    else:
        do = "its kernels are compiled anew at the first load; the golden check below says if it is right"
        yield Finding(model, "ok", f"{found}; {here} is installed here", do)


def _server(settings: TritonSettings, url: str) -> Iterator[Finding]:
    from ..failover.discovery import Pin

    check = f"server {url}"
    tls = settings.limits.tls
    if tls is not None and not url.startswith(("dns:", "unix:")):
        finding = _handshake(url, settings)
        yield finding
        if finding.level == "error":
            return
    with settings.client(url) as client:
        try:
            status = client.status()
        except ArcFaceError as error:
            yield Finding(check, "error", str(error))
            return
    ready = f"Triton {status.version}, {'ready' if status.ready else 'not ready'}"
    yield Finding(check, "ok" if status.ready else "error", ready, None if status.ready else "see its log")
    for model in status.models:
        what = Pin(model.name, model.version)
        if model.problem is None:
            yield Finding(check, "ok", f"{what} is ready{f', {model.role}' if model.role else ''}")
        elif isinstance(model.problem, NotReleasedError):
            yield Finding(check, "ok", f"{what}: {model.problem}")
        else:
            yield Finding(check, "warning", f"{what}: {model.problem}", _UNAVAILABLE)


def _handshake(url: str, settings: TritonSettings) -> Finding:
    """Begin a TLS connection as gRPC would, which says only that it cannot connect."""
    check, files = f"certificates {url}", settings.tls
    host, _, port = url.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=files.root_certificates)
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)  # gRPC is not strict
        context.set_alpn_protocols(["h2"])
        if files.certificate_chain is not None:
            context.load_cert_chain(files.certificate_chain, files.private_key)
        with (
            socket.create_connection((host.strip("[]"), int(port)), _DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as connection,
        ):
            certificate = connection.getpeercert() or {}
            goes_on = connection.recv(1)  # a server that refuses the client's certificate ends the connection
    except ssl.SSLCertVerificationError as error:
        do = "renew the server's certificate, or set triton.tls.root_certificates to its authority"
        return Finding(check, "error", f"the server's certificate is refused: {error.verify_message}", do)
    except ssl.SSLError as error:
        do = "check the files of triton.tls, and that the server has TLS on this port"
        return Finding(check, "error", f"no TLS connection: {error.reason or error}", do)
    except OSError as error:
        return Finding(check, "error", f"no connection: {error.strerror or error}", "check that it runs")
    if not goes_on:
        given = files.certificate_chain
        do = "give it a valid one of an authority that the server trusts: triton.tls.certificate_chain"
        refused = f"refuses the client's certificate, {given}" if given else "wants a client's certificate"
        return Finding(check, "error", f"the server {refused}", do)
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
    found = f"the server's is valid for {days:,.0f} more days"
    return _warned(check, days < _RENEW_DAYS, found, "renew it")


def _golden(settings: PipelineSettings) -> Iterator[Finding]:
    from ..backends.factory import make_backend

    check = "golden check"
    try:
        backend = make_backend(settings)
    except ArcFaceError as error:
        yield Finding(check, "error", str(error))
        return
    with backend as embedder:
        try:
            embedder.ensure_ready()
        except ArcFaceError as error:
            yield Finding(check, "error", str(error))
            return
        for one in embedder.diagnostics().candidates:
            drift = "" if one.drift is None else f", drift {one.drift:.1e}"
            reason = f": {one.reason}" if one.state in ("failing", "refused") else ""
            found = f"{one.candidate} is {one.state}{drift}{reason}"
            yield _warned(check, bool(reason), found, _UNAVAILABLE)


def _bucket(bucket: str | None) -> Iterator[Finding]:
    if bucket is None:
        return
    check = f"bucket {bucket}"
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        yield Finding(check, "warning", "boto3 is not installed", "pip install 'arcface-triton[s3]'")
        return
    try:
        boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix="engines/", MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        do = "check the bucket's name, AWS_ENDPOINT_URL, the region, and the right s3:ListBucket"
        yield Finding(check, "error", str(error), do)
    else:
        yield Finding(check, "ok", "can be listed")
