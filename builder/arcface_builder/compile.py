"""Compile: the ONNX model of a repository in, a checked plan in its TensorRT sibling out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial

from arcface_client.contract import Crops, Progress, no_progress
from arcface_client.models.embedding_space import INT8, QUANTISED
from arcface_client.models.files import sha256_of
from arcface_client.models.golden import golden_crops
from arcface_client.models.manifest import Golden
from arcface_client.models.naming import plan_model
from arcface_client.models.plan_manifest import PlanKey, PlanManifest
from arcface_client.models.repository import LocalOnnx
from arcface_client.models.schema import Setting
from arcface_client.runtimes.base import in_batches
from arcface_client.triton.limits import DEFAULT_MAX_DRIFT_COSINE

from .check.accuracy import ReferenceEmbeddings, reference_for_plans
from .check.refusal import keep_refusal
from .check.speed import faces_per_s
from .check.task import BY_TASK, TaskGate
from .errors import CompileError, ParityError, PrecisionError, ServedModelError
from .graph.edit import parse
from .graph.mixed import calibration_halves, quantised_graph
from .graph.opset import lowered
from .graph.precision import check_gpu_has, fallbacks, is_quantised, typed_graph, typed_int8
from .graph.quantise import calibration_sha256
from .repository.plans import AddedPlan, add_plans, check_free, published_plans, recorded_plan
from .repository.publish import ModelRepository, now, tool_versions
from .source.load import Source, source_embedder
from .store.plan_store import PlanStore
from .store.stored import GPU, StoredPlan, this_platform
from .trt.compat import can_be_hardware_compatible, check_knows, is_strongly_typed, newest_opset
from .trt.engine import build_plan
from .trt.gpu import Gpu
from .trt.inspect import check_precision
from .trt.options import BUILD_REVISION, BuildOptions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to compile, and how.

    Attributes:
        onnx: The model.
        options: The plan.
        max_drift_cosine: Largest drift from the source model that is allowed.
        calibration: Real crops, uint8 [N, 112, 112, 3]: for int8's ranges, and for the accuracy check.
        source: The source model; without it a plan is compared with the ONNX model alone.
        gate: Judges a plan in int8 by its recognition; None judges it by its drift.
        command: Gives the command line that builds the plan of a precision, for the manifest.
    """

    onnx: LocalOnnx
    options: BuildOptions
    max_drift_cosine: float = DEFAULT_MAX_DRIFT_COSINE
    calibration: Crops | None = None
    source: Source | None = None
    gate: TaskGate | None = None
    command: Callable[[str], str] = "arcface-builder compile --precision {}".format
    _references: dict[bool, ReferenceEmbeddings] = field(default_factory=dict, init=False, compare=False)

    def calibrates(self, precision: str) -> bool:
        """Whether a precision needs calibration crops: the ONNX model is not quantised already."""
        return precision in QUANTISED and not self._is_quantised

    def gate_of(self, precision: str) -> TaskGate | None:
        """What judges a plan's recognition; None where its drift is judged."""
        return self.gate if precision == INT8 else None

    @cached_property
    def _is_quantised(self) -> bool:
        return is_quantised(parse(self.onnx.content()))

    def reference(self, precision: str) -> ReferenceEmbeddings:
        """What plans of a precision are compared with; computed once, which takes a while.

        Raises:
            OptionError: int8 has too few calibration crops.
            ServedModelError: The ONNX model drifts from its source: no plan of it can pass.
        """
        in_int8 = self.calibrates(precision)
        if in_int8 not in self._references:
            self._references[in_int8] = reference_for_plans(
                self.onnx.path,
                source_embedder(self.source, self.onnx.source_sha256),
                calibration_halves(self.calibration)[1] if in_int8 else self.calibration,
                max_drift_cosine=self.max_drift_cosine,
                in_int8=in_int8,
            )
        return self._references[in_int8]


@dataclass(frozen=True, eq=False)
class ConvertedGraph:
    """What TensorRT reads.

    Attributes:
        content: The ONNX file.
        quantised: The convolutions in int8, by the names of their nodes.
    """

    content: bytes
    quantised: tuple[str, ...] = ()


def compile_plan(
    request: PlanRequest,
    gpu: Gpu,
    store: PlanStore,
    repository: ModelRepository,
    *,
    precision: str | None = None,
    refusals: Sequence[str] = (),
    instances: int | None = None,
    report: Progress = no_progress,
) -> AddedPlan:
    """Find a plan in the store, or build and check it; then put it into the repository.

    ``precision`` is the request's unless it is given; ``refusals`` say, for the manifest, why more compact
    precisions were not taken. ``instances`` is that of ``add_plans``.

    Raises:
        CompileError: The plan cannot be built, or does not run in its precision.
        ParityError: The plan or the ONNX model does not give the source model's embeddings; nothing was
            stored.
        BuilderError: The store or the repository cannot be used.
    """
    onnx, tensorrt_version = request.onnx, gpu.trt.__version__
    precision = precision or request.options.precision
    check_gpu_has(precision, gpu.sm)
    check_knows(tensorrt_version, precision)

    report(f"Writing {precision} into the graph", None)
    graph = None if request.calibrates(precision) else convert(request, precision, tensorrt_version)
    key = plan_key(request, precision, graph, tensorrt_version=tensorrt_version, sm=gpu.sm, gpu_name=gpu.name)
    plan = recorded_plan(repository, key, onnx.version) or store.local.find(key)
    from_store = plan is not None
    if plan is None:
        check_free(repository, key, onnx.version)  # what follows takes minutes
        with store.local.building(key):
            plan = store.fetch(key)
            from_store = plan is not None
            if plan is None:
                graph = graph or convert(request, precision, tensorrt_version, report)
                plan = _new_plan(request, key, graph, gpu, store, report)
    # The refusals belong to this repository: the store may have the plan because it was asked for by itself.
    manifest = replace(plan.manifest, refusals=tuple(refusals) or plan.manifest.refusals)
    plan = replace(plan, manifest=manifest)
    (added,) = add_plans(
        repository,
        [plan],
        version=onnx.version,
        embedding_dim=onnx.manifest.embedding_dim,
        instances=instances,
    )
    return replace(added, from_store=from_store)


def compile_with_fallback(
    request: PlanRequest,
    gpu: Gpu,
    store: PlanStore,
    repository: ModelRepository,
    *,
    instances: int | None = None,
    report: Progress = no_progress,
) -> AddedPlan:
    """Compile a plan; where its precision is refused, the next more exact one.

    Arguments and errors are those of ``compile_plan``; the error is that of the last precision.
    """
    onnx = request.onnx
    there = published_plans(repository, plan_model(onnx.name)).get(onnx.version, {})
    published = next((one for one in there.values() if one.identity.sm == gpu.sm), None)
    refusals: list[str] = []
    precision, *left = [request.options.precision, *fallbacks(request.options.precision, gpu.sm)]
    while True:
        if left and published is not None and published.has_refused(precision):
            precision, *left = left
            continue
        try:
            return compile_plan(
                request,
                gpu,
                store,
                repository,
                precision=precision,
                refusals=refusals,
                instances=instances,
                report=report,
            )
        except ServedModelError:
            raise  # no plan of any precision can pass
        except (ParityError, PrecisionError) as error:
            if not left:
                raise
            refusals.append(f"{precision} was refused: {error}")
            precision, *left = left
            _log.warning("%s Falling back to %s.", error, precision)


def convert(
    request: PlanRequest, precision: str, tensorrt_version: str, report: Progress = no_progress
) -> ConvertedGraph:
    """Write a precision into the ONNX model, as this TensorRT takes it; int8 takes a while.

    Raises:
        OptionError: int8 has no calibration crops.
        CompileError: The model cannot be written in the opset that this TensorRT reads.
    """
    content, newest = request.onnx.content(), newest_opset(tensorrt_version)
    if newest is not None:
        try:
            content = lowered(content, newest)
        except ValueError as error:
            raise CompileError(
                f"TensorRT {tensorrt_version} reads ONNX up to opset {newest}, and {request.onnx.model} "
                f"cannot be written in that ({error}); compile it with TensorRT 10 or newer. The ONNX model "
                "serves as it is."
            ) from error
    if not request.calibrates(precision):
        return ConvertedGraph(typed_graph(content, precision))
    quantised = quantised_graph(
        content, precision, request.calibration, max_drift_cosine=request.max_drift_cosine, report=report
    )
    typed = typed_int8(quantised.content, precision, strongly_typed=is_strongly_typed(tensorrt_version))
    return ConvertedGraph(typed, quantised.convolutions)


def plan_key(
    request: PlanRequest,
    precision: str,
    graph: ConvertedGraph | None,
    *,
    tensorrt_version: str,
    sm: str,
    gpu_name: str | None = None,
    platform: str | None = None,
) -> PlanKey:
    """Name a plan by everything that TensorRT reads, and by the tolerance of its check.

    ``graph`` is None for one that is calibrated: the crops stand for it. ``gpu_name``, the GPU's model,
    counts where TensorRT cannot build for a whole architecture, or was told not to.
    """
    onnx, options, gate = request.onnx, request.options, request.gate_of(precision)
    if graph is None:
        digest = calibration_sha256(onnx.content(), calibration_halves(request.calibration)[0])
    else:
        digest = hashlib.sha256(graph.content).hexdigest()
    fits_architecture = options.hardware_compatible and can_be_hardware_compatible(tensorrt_version)
    settings: dict[str, Setting] = {
        "platform": platform or this_platform(),
        "workspace_size_mb": options.workspace_size_mb,
        "hardware_compatible": fits_architecture,
        "small_batch_profile": len(options.profiles) > 1,
        "profiles": len(options.profiles),
        "build_revision": BUILD_REVISION,
        **(gate.settings if gate else {}),
    }
    if not fits_architecture and gpu_name is not None:
        settings[GPU] = gpu_name
    smallest, tuned, largest = options.profiles[0]
    return PlanKey(
        model=onnx.name,
        onnx_sha256=onnx.sha256,
        graph_sha256=digest,
        tensorrt_version=tensorrt_version,
        sm=sm,
        precision=precision,
        min_batch_size=smallest,
        opt_batch_size=tuned,
        max_batch_size=largest,
        settings=settings,
        max_drift_cosine=request.max_drift_cosine,
    )


def _new_plan(
    request: PlanRequest, key: PlanKey, graph: ConvertedGraph, gpu: Gpu, store: PlanStore, report: Progress
) -> StoredPlan:
    """Build a plan, if the ONNX model passes the check; check it, and store it."""
    report("Comparing the ONNX model with its source", None)
    reference = request.reference(key.precision)  # an ONNX model that drifts would waste the build
    trt = gpu.trt
    timings = store.local.timing_cache(f"{trt.__name__}-{trt.__version__}", gpu.name)
    options = replace(
        request.options, precision=key.precision, timing_cache=request.options.timing_cache or timings
    )
    built = build_plan(
        trt, graph.content, options, report=report, target_sm=gpu.target_sm, free_mb=gpu.free_mb
    )
    report("Inspecting the plan", None)
    precisions = gpu.inspect(built.plan)
    for profile in precisions:
        check_precision(profile, key.precision)
    with store.local.staging() as folder:
        path = folder / key.filename
        path.write_bytes(built.plan)
        report("Comparing the plan with its source", None)
        largest = key.max_batch_size
        with gpu.load(path) as plan:
            # Full batches of each profile, a batch that is not full, and single crops.
            sizes = sorted({1, *(profile[-1] for profile in options.profiles), (largest + 1) // 2})
            accuracy = reference.compare(plan.embed, sizes)
            embed, gate = partial(in_batches, plan.embed, size=largest), request.gate_of(key.precision)
            golden = Golden.of(embed(golden_crops())) if key.precision == INT8 else None
            try:
                accuracy.check(by_task=gate is not None)
                losses = gate.check(request.onnx.path, embed, report) if gate else ()
            except ParityError as error:
                report("Looking for the layer that diverges", None)
                content = request.onnx.content()
                kept = keep_refusal(
                    store.local.root / "refused" / path.stem,
                    converted=graph.content,
                    exact=typed_graph(content, "int8" if is_quantised(parse(content)) else "fp32"),
                    settings={"plan": asdict(key), "accuracy": accuracy.to_record()},
                    crops=reference.crops[list(accuracy.worst_crops[:largest])],
                    max_drift_cosine=request.max_drift_cosine,
                    strongly_typed=is_strongly_typed(trt.__version__),
                )
                hint = f" {BY_TASK}" if key.precision == INT8 and gate is None else ""
                raise ParityError(f"{error} Nothing was stored. {kept}{hint}") from error
            speed = faces_per_s(plan)
        notes: tuple[str, ...] = ()
        if built.workspace_size_mb != options.workspace_size_mb:
            notes = (f"out of memory: built with a workspace of {built.workspace_size_mb} MB",)
        manifest = PlanManifest(
            plan_sha256=sha256_of(path),
            plan_bytes=len(built.plan),
            identity=key,
            created=now(),
            gpu_name=gpu.name,
            driver_version=gpu.driver_version,
            precisions_used=precisions[0].layers,
            quantised=graph.quantised,
            parity=accuracy.parity(losses),
            golden=golden,
            faces_per_s=speed,
            rebuild_command=request.command(key.precision),
            tools=tool_versions() | {trt.__name__: trt.__version__},
            notes=notes,
            build_seconds=round(built.build_s, 1),
            timing_cache=built.timing_cache,
        )
        return store.put(path, manifest)
