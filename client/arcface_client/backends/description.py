"""What a backend in this process says of itself, from what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import DeploymentError, DriftError
from ..observability.diagnostics import CandidateReport, Diagnostics, Validation
from ..observability.meter import Meter
from .local_model import LocalCandidate
from .serving import Serving


def describe(
    backend: str,
    serving: Serving | None,
    candidates: Sequence[LocalCandidate],
    errors: Mapping[LocalCandidate, DeploymentError],
    meter: Meter,
) -> Diagnostics:
    """Put together what is known.

    Args:
        backend: What was asked for.
        serving: The model that serves; None when none is loaded.
        candidates: All of them, in order of preference.
        errors: Why some of them cannot be used.
        meter: Has measured the last calls.
    """
    reports = tuple(_report(candidate, serving, errors.get(candidate)) for candidate in candidates)
    if serving is None:
        drift = next((report.drift for report in reports if report.drift is not None), None)
        return Diagnostics(
            backend=backend,
            validation=Validation(
                drift_vs_reference=drift,
                reference=None if drift is None else "manifest",
                regression_test=None if drift is None else "failed",
            ),
            candidates=reports,
        )
    model = serving.model
    return Diagnostics(
        backend=model.backend,
        model=model.model,
        version=model.version,
        engine_path=str(model.path),
        precision=model.precision,
        sm=model.sm,
        provider=model.provider,
        vram_mb=model.vram_mb,
        batch_size=model.batch_size,
        throughput_fps=meter.throughput_fps,
        latency_ms=meter.latency_ms,
        validation=Validation(
            drift_vs_reference=serving.drift,
            reference="itself" if serving.drift is None else "manifest",
            regression_test=None if serving.drift is None else "passed",
        ),
        candidates=reports,
    )


def _report(
    candidate: LocalCandidate, serving: Serving | None, error: DeploymentError | None
) -> CandidateReport:
    if serving is not None and serving.candidate is candidate:
        return CandidateReport(candidate=candidate.name, state="serving", drift=serving.drift)
    if error is None:
        return CandidateReport(candidate=candidate.name, state="standing by")
    drift = error.drift if isinstance(error, DriftError) else None
    return CandidateReport(candidate=candidate.name, state="refused", reason=str(error), drift=drift)
