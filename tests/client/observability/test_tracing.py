"""Traces of OpenTelemetry, from a call of ``encode`` to the spans of the real Triton."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from arcface_client import AsyncEmbeddingBackend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops
from arcface_client.observability.diagnostics import HERE, Served, Source
from arcface_client.observability.tracing import traced
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import wait_until
from support.siblings import write_siblings


class Collector(ThreadingHTTPServer):
    """Takes the spans that a server sends, in JSON over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.spans: list[dict[str, Any]] = []


class _Taker(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, Collector)
        for resource in sent["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.server.spans += scope["spans"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Recorder(FakeTriton):
    """Keeps the context that each request carries."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.contexts: list[str] = []

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.contexts += [str(value) for key, value in context.invocation_metadata() if key == "traceparent"]
        return super().ModelInfer(request, context)


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def exporter(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


def test_each_call_is_a_span_and_each_request_carries_its_context(
    crops: Crops, exporter: InMemorySpanExporter
) -> None:
    async def encode(embedder: TritonBackend) -> None:
        async with AsyncEmbeddingBackend(embedder) as asynchronous:
            await asynchronous.encode(crops[:2])

    fake = Recorder(model="fake_onnx", max_batch_size=32)
    with served(fake) as url:
        embedder = TritonBackend(url, "fake")
        embedder.ensure_ready()
        fake.contexts.clear()
        with trace.get_tracer("pipeline").start_as_current_span("pipeline"):
            embedder.encode(crops)
            asyncio.run(encode(embedder))
    several, one, pipeline = exporter.get_finished_spans()
    assert [span.name for span in (several, one)] == ["arcface encode"] * 2
    assert several.parent == one.parent == pipeline.get_span_context()
    assert several.attributes is not None
    assert several.attributes["arcface.crops"] == len(crops)
    assert several.attributes["arcface.served_by"] == (f"fake_onnx:1 at {url}",)
    contexts = [span.get_span_context() for span in (several, several, several, several, one)]
    assert [context.split("-")[1:3] for context in fake.contexts] == [
        [f"{context.trace_id:032x}", f"{context.span_id:016x}"] for context in contexts if context
    ]


def test_a_span_names_a_model_without_a_version_by_its_name(exporter: InMemorySpanExporter) -> None:
    traced(lambda: Served((Source("insightface", "w600k_r50", None, HERE, 1),)), 1)
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["arcface.served_by"] == ("w600k_r50 at this process",)


@pytest.mark.faults
def test_a_servers_spans_continue_those_of_a_pipelines_calls(
    tmp_path: Path, crops: Crops, exporter: InMemorySpanExporter, collector: Collector
) -> None:
    settings = [
        "mode=opentelemetry",
        f"opentelemetry,url=http://127.0.0.1:{collector.server_port}/v1/traces",
        "level=TIMESTAMPS",
        "rate=1",
    ]
    flags = [f"--trace-config={setting}" for setting in settings]
    with (
        LocalTriton(write_siblings(tmp_path), flags=flags) as server,
        TritonBackend(server.grpc_url, "tiny") as embedder,
    ):
        embedder.ensure_ready()
        for _ in range(20):
            embedder.encode(crops[:1])
        contexts = [span.get_span_context() for span in exporter.get_finished_spans()]
        ours = {f"{context.span_id:016x}" for context in contexts if context}
        # 2.51 loses the context of some requests, and begins a trace of its own for them.
        wait_until(lambda: bool(ours & {span.get("parentSpanId") for span in collector.spans}))
