"""OpenTelemetry: a span for each call of ``encode``, and its context in each request, which Triton continues.

Nothing is done, or imported, in a program that does not use OpenTelemetry itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping

from .diagnostics import Served


def traced(run: Callable[[], Served], crops: int) -> Served:
    """Run a call in a span of its own, which says how many crops it had and which replicas served.

    Args:
        run: The call.
        crops: How many crops it embeds.
    """
    if "opentelemetry.trace" not in sys.modules:
        return run()
    from opentelemetry import trace

    tracer = trace.get_tracer("arcface_client")
    with tracer.start_as_current_span("arcface encode", attributes={"arcface.crops": crops}) as span:
        served = run()
        span.set_attributes(
            {"arcface.served_by": list(map(str, served.sources)), "arcface.fell_back": served.fell_back}
        )
    return served


def continue_trace(headers: MutableMapping[str, str]) -> None:
    """Add the context of the current span, if there is one, to the headers of a request."""
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate

        propagate.inject(headers)
