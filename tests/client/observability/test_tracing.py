"""Traces of OpenTelemetry, from a call of ``encode`` to the spans of the real Triton."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from arcface_client import AsyncEmbeddingBackend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import write_siblings

pytestmark = pytest.mark.faults


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


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


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

    async def encode(embedder: TritonBackend) -> None:
        async with AsyncEmbeddingBackend(embedder) as asynchronous:
            await asynchronous.encode(crops[:2])

    with LocalTriton(write_siblings(tmp_path), flags=flags) as server:
        embedder = TritonBackend(server.grpc_url, "tiny")
        embedder.ensure_ready()
        with trace.get_tracer("pipeline").start_as_current_span("pipeline"):
            embedder.encode(crops)
            asyncio.run(encode(embedder))
        several, one, pipeline = exporter.get_finished_spans()
        contexts = [span.get_span_context() for span in (several, one, pipeline)]
        assert [span.name for span in (several, one)] == ["arcface encode"] * 2
        assert several.parent == one.parent == pipeline.get_span_context()
        assert several.attributes is not None
        assert several.attributes["arcface.crops"] == len(crops)
        assert several.attributes["arcface.served_by"] == (f"tiny_trt:1 at {server.grpc_url}",)

        def continued() -> list[int]:
            parents = [span.get("parentSpanId") for span in collector.spans]
            return [parents.count(f"{context.span_id:016x}") for context in contexts[:2] if context]

        wait_until(lambda: continued() == [4, 1])  # 100 crops are four requests
    ours = {span["traceId"] for span in collector.spans if span["name"] == "InferRequest"}
    assert {f"{context.trace_id:032x}" for context in contexts if context} <= ours
