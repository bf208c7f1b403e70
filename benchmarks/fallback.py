"""How long it takes until another replica serves, when servers are killed while calls run."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from arcface_builder.build import build
from arcface_builder.check.crops import face_like
from arcface_builder.source.load import Synthetic
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.factory import get_embedding_backend
from arcface_client.observability.diagnostics import HERE
from arcface_server import LocalTriton
from script import usual_flags, write

NEXT: Final = "killed, another server is there: first embedding by it"
HUNG: Final = "stopped (SIGSTOP), another server is there: first embedding by it"
AWAY: Final = "killed, no other is there: first embedding in this process, its loading included"
BACK: Final = "started again, from its readiness: first embedding by it"

CALM_S: Final = 1.0
"""Seconds of normal calls before the fault."""


def main() -> None:
    """Run the benchmark."""
    parser = usual_flags(__doc__)
    parser.add_argument("--outages", type=int, default=7, help="of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name)
        build(Synthetic(arguments.depth), name="arcface", repository=repository)
        seconds = outages(repository, arguments.outages)
    outages_s = {kind: [round(each, 3) for each in several] for kind, several in seconds.items()}
    write(arguments.output, "fallback", depth=arguments.depth, outages_s=outages_s)


def outages(repository: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of every outage, by kind."""
    seconds: dict[str, list[float]] = {NEXT: [], HUNG: [], AWAY: [], BACK: []}
    for _ in track(range(repeats), "outages", console=Console(stderr=True)):
        seconds[NEXT].append(to_the_next_server(repository, "arcface", signal.SIGKILL))
        seconds[HUNG].append(to_the_next_server(repository, "arcface", signal.SIGSTOP))
        away_s, back_s = to_this_process_and_back(repository, "arcface")
        seconds[AWAY].append(away_s)
        seconds[BACK].append(back_s)
    return seconds


def to_the_next_server(repository: Path, name: str, fault: signal.Signals) -> float:
    """Seconds from a signal to one of two servers to the first embedding by the other."""
    with ExitStack() as stack:
        servers = [stack.enter_context(_server(repository)) for _ in range(2)]
        embedder = stack.enter_context(_embedder(repository, name, [server.grpc_url for server in servers]))
        embedder.ensure_ready()
        return _seconds_until(servers[1].grpc_url, embedder, lambda: os.kill(servers[0].pid, fault))


def to_this_process_and_back(repository: Path, name: str) -> tuple[float, float]:
    """Seconds from the only server's death to the first embedding here, and from its return to its own."""
    with ExitStack() as stack:
        with _server(repository) as server:
            url = server.grpc_url
            embedder = stack.enter_context(_embedder(repository, name, [url]))
            embedder.ensure_ready()
            away_s = _seconds_until(HERE, embedder, lambda: os.kill(server.pid, signal.SIGKILL))
        restarted = stack.enter_context(ExitStack())
        port = int(url.rpartition(":")[2])
        back_s = _seconds_until(
            url, embedder, lambda: restarted.enter_context(LocalTriton(repository, grpc_port=port))
        )
    return away_s, back_s


def _server(repository: Path) -> LocalTriton:
    return LocalTriton(repository, stop_timeout_s=1)


def _embedder(repository: Path, name: str, urls: Sequence[str]) -> EmbeddingBackend:
    return get_embedding_backend(
        "triton", triton_url=list(urls), embedding_model=name, embedding_model_repository=repository
    )


def _seconds_until(where: str, embedder: EmbeddingBackend, happens: Callable[[], object]) -> float:
    """Call ``happens`` while calls of one crop run; seconds until ``where`` serves the first one."""
    happened_at: list[float] = []

    def happen() -> None:
        time.sleep(CALM_S)
        happens()
        happened_at.append(time.perf_counter())

    crops = face_like(1)
    trouble = threading.Thread(target=happen)
    trouble.start()
    try:
        while True:
            _, served = embedder.encode(crops, return_source=True)
            answered_at = time.perf_counter()
            if served.sources[-1].where == where:
                trouble.join()
                return answered_at - happened_at[0]
    finally:
        trouble.join()


if __name__ == "__main__":
    main()
