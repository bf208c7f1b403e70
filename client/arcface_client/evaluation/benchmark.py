"""How fast does each of several systems embed on this machine: ``arcface-client benchmark``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..contract import Embeddings, Progress, no_progress
from ..errors import ArcFaceError, InputError
from ..failover.discovery import Pin
from ..models.golden import largest_drift
from ..observability.diagnostics import HERE, Diagnostics, Served
from ..runtimes.base import batch_sizes
from .benchmark_worker import Turn, Worker
from .report import versions

if TYPE_CHECKING:
    from ..settings import PipelineSettings

INTERRUPTED: Final = "interrupted"

NOISY: Final = 0.1
"""From which spread on the turns tell nothing: that of their middle half, relative to their median."""

_LEAST_TURNS: Final = 3  # to have a spread
_GPU_COLUMNS: Final = "name,driver_version,memory.used"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and for how long.

    Attributes:
        systems: Names as ``Worker`` takes them; the first is the baseline of the others.
        batch_sizes: Crops in a call; none means 1 doubled up to the largest batch that all systems take.
        clients: Threads that call each system at a time, one call after the other.
        turns: How many turns each system has at each batch size.
        turn_s: About how long a turn takes; it is one call at least.
        command: The command line, for the report.
    """

    systems: Sequence[str]
    batch_sizes: Sequence[int] = ()
    clients: int = 1
    turns: int = 10
    turn_s: float = 0.5
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A value of each turn.

    Attributes:
        median: Its median over the turns.
        low: From which value on the middle half of the turns lies.
        high: Up to which value.
        noisy: Whether the turns differ too much to tell anything, or are too few.
        turns: All values.
    """

    median: float
    low: float
    high: float
    noisy: bool
    turns: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How fast a system is at one batch size.

    Attributes:
        batch_size: Crops in a call.
        clients: Calls under way at a time.
        throughput_fps: Faces a second, the median over the turns.
        fps: Faces a second, turn by turn.
        p50_ms: Median time of a call.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile; with fewer than a hundred calls about the longest.
        calls: How many calls were measured.
        ratio: Faces a second relative to the first system's in the same turn; None for the first system.
    """

    batch_size: int
    clients: int
    throughput_fps: float
    fps: Spread
    p50_ms: float
    p95_ms: float
    p99_ms: float
    calls: int
    ratio: Spread | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a system.

    Attributes:
        name: Its name.
        diagnostics: What it says of itself.
        served_by: What embedded, for example "arcface_r100_onnx:1 at localhost:8001".
        fell_back: Whether another candidate than the first choice embedded some of the crops.
        not_by: What is preferred to that and did not embed, and why.
        start_s: Seconds from nothing to the first embeddings, Python's start and all checks included.
        host_mb: Largest resident memory of the process that calls or holds the model, in MiB.
        vram_mb: GPU memory that it takes in this machine, in MiB; not exact while others use the GPU.
        drift: Largest drift of the golden crops from the first system; None for the first system.
        figures: By batch size.
    """

    name: str
    diagnostics: Diagnostics
    served_by: Sequence[str]
    fell_back: bool
    not_by: Sequence[str]
    start_s: float
    host_mb: float
    vram_mb: float | None
    drift: float | None
    figures: Sequence[Figure]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields for JSON; the speed in the diagnostics is that of the fastest batch size."""
        own, fastest = asdict(self), max(self.figures, key=lambda figure: figure.throughput_fps)
        return {
            **own.pop("diagnostics"),
            **own,
            "batch_size": fastest.batch_size,
            "throughput_fps": fastest.throughput_fps,
            "latency_ms": fastest.p50_ms,
        }


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Everything that a benchmark found; the first system is the baseline.

    Attributes:
        systems: Each with its figures.
        options: What was asked for.
        stopped: Why not everything was measured: "interrupted", or the error; None for a whole benchmark.
        machine: What it ran on.
        versions: Of Python and of packages.
        created: When, UTC, ISO 8601.
    """

    systems: Sequence[Measured]
    options: Options
    stopped: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str

    @property
    def fell_back(self) -> bool:
        """Whether one of the systems fell back."""
        return any(system.fell_back for system in self.systems)

    @property
    def noisy(self) -> bool:
        """Whether one of the figures tells nothing, because the turns differ too much."""
        figures = [figure for system in self.systems for figure in system.figures]
        return any(spread.noisy for one in figures for spread in (one.fps, one.ratio) if spread is not None)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields for JSON, which docs/benchmark.md describes."""
        return {
            "complete": self.stopped is None,
            "stopped": self.stopped,
            "noisy": self.noisy,
            "systems": [system.to_dict() for system in self.systems],
            "turns": self.options.turns,
            "turn_s": self.options.turn_s,
            "machine": self.machine,
            "versions": self.versions,
            "command": self.options.command,
            "created": self.created,
        }


@dataclass
class _System:
    """A system under measurement, with its turns by batch size."""

    name: str
    worker: Worker
    diagnostics: Diagnostics
    golden: Embeddings
    start_s: float
    vram_mb: float | None
    turns: dict[int, list[Turn]] = field(default_factory=dict)


def benchmark(options: Options, settings: PipelineSettings, progress: Progress = no_progress) -> Benchmark:
    """Let systems embed in turns, batch size by batch size.

    Ctrl-C and an error end the measurement, and what was measured before is returned.

    Args:
        options: What to measure.
        settings: The settings of the backends and of the server.
        progress: Called before each turn.

    Raises:
        ArcFaceError: A system cannot be opened, or failed before anything was measured.
        KeyboardInterrupt: Nothing was measured before it came.
    """
    stopped = None
    with ExitStack() as stack:
        systems = []
        for name in options.systems:
            progress(f"opening {name}", None)
            systems.append(_open(name, settings, options, stack))
        most = min(system.diagnostics.batch_size or 1 for system in systems)
        sizes = options.batch_sizes or batch_sizes(most)
        try:
            for stage, done in _take_turns(systems, sizes, options):
                progress(stage, done)
        except (KeyboardInterrupt, ArcFaceError) as error:
            if not systems[0].turns:
                raise
            stopped = str(error) or INTERRUPTED
    return Benchmark(
        systems=[_measured(system, systems[0], options.clients) for system in systems],
        options=options,
        stopped=stopped,
        machine=machine(),
        versions=versions(None),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def check_batch_size(name: str, largest: int, known: int | None) -> None:
    """Raise InputError if ``largest`` is above ``known``, the system's largest batch; None is any."""
    if known is not None and largest > known:
        raise InputError(
            f"{name} takes at most {known} crops in a batch, and a batch size is {largest}; give at most "
            f"{known}, for example --batch-size {known}."
        )


def _open(name: str, settings: PipelineSettings, options: Options, stack: ExitStack) -> _System:
    used_mb = _gpu_mb()
    begin = time.perf_counter()
    worker = Worker(name, settings)
    stack.callback(worker.close)
    diagnostics, golden = worker.open()
    start_s = time.perf_counter() - begin
    known = diagnostics.batch_size
    largest = max(options.batch_sizes, default=known or 1)
    check_batch_size(name, largest, known)
    worker.turn(largest, 0, options.clients)  # memory grows with the batch
    took_mb = diagnostics.vram_mb or round(_gpu_mb() - used_mb, 1)
    return _System(name, worker, diagnostics, golden, start_s, took_mb if took_mb > 0 else None)


def _take_turns(
    systems: Sequence[_System], sizes: Sequence[int], options: Options
) -> Iterator[tuple[str, float]]:
    """Measure; yields before each turn what comes, and how much of all is done."""
    for number, size in enumerate(sizes):
        yield f"batch {size}: warming up", number / len(sizes)
        for system in systems:
            system.worker.turn(size, options.turn_s, options.clients)
        for turn in range(options.turns):
            yield f"batch {size}", (number + turn / options.turns) / len(sizes)
            # The first system of a turn changes, so that none always follows the same one.
            first = turn % len(systems)
            order = [*systems[first:], *systems[:first]]
            done = [system.worker.turn(size, options.turn_s, options.clients) for system in order]
            for system, own in zip(order, done, strict=True):  # a turn that was stopped counts for none
                system.turns.setdefault(size, []).append(own)


def _measured(system: _System, first: _System, clients: int) -> Measured:
    ways = {way for turns in system.turns.values() for turn in turns for way in turn.served}
    host_mb = max(turn.host_mb for turns in system.turns.values() for turn in turns)
    return Measured(
        name=system.name,
        diagnostics=system.diagnostics,
        served_by=sorted({_place(way) for way in ways}),
        fell_back=any(way.fell_back for way in ways),
        not_by=sorted({f"{one.candidate}: {one.reason}" for way in ways for one in way.refusals}),
        start_s=round(system.start_s, 3),
        host_mb=round(host_mb, 1),
        vram_mb=system.vram_mb,
        drift=None if system is first else _drift(first.golden, system.golden),
        figures=[
            _figure(size, clients, turns, None if system is first else first.turns[size])
            for size, turns in system.turns.items()
        ],
    )


def _figure(size: int, clients: int, turns: Sequence[Turn], baseline: Sequence[Turn] | None) -> Figure:
    speeds = [_fps(size, turn) for turn in turns]
    fps = _spread(speeds)
    calls_ms = [1000 * second for turn in turns for second in turn.calls_s]
    p50, p95, p99 = np.percentile(calls_ms, [50, 95, 99]).tolist()
    ratio = None
    if baseline is not None:
        ratio = _spread([own / _fps(size, other) for own, other in zip(speeds, baseline, strict=True)])
    return Figure(
        batch_size=size,
        clients=clients,
        throughput_fps=fps.median,
        fps=fps,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        calls=len(calls_ms),
        ratio=ratio,
    )


def _fps(size: int, turn: Turn) -> float:
    return size * len(turn.calls_s) / turn.wall_s


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    noisy = len(values) < _LEAST_TURNS or not high - low <= NOISY * median
    return Spread(median=median, low=low, high=high, noisy=noisy, turns=tuple(values))


def _place(way: Served) -> str:
    return ", then ".join(
        f"{Pin(source.model, source.version)} {'in' if source.where == HERE else 'at'} {source.where}"
        for source in way.sources
    )


def _drift(left: Embeddings, right: Embeddings) -> float | None:
    return largest_drift(left, right) if left.shape == right.shape else None


def machine() -> dict[str, Any]:
    """Describe this machine: the processor, its cores that may be used, memory, GPUs with their driver."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0].strip() if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [f"{name}, driver {driver}" for name, driver, _ in _gpus()]
    return {"cpu": cpu, "cores": cores, "system": platform.platform(), "gpus": gpus}


def _gpu_mb() -> float:
    """Used memory of all GPUs, in MiB; 0 where there is none, or where they do not tell."""
    return sum(float(used) for _, _, used in _gpus() if used.isdecimal())  # else "[N/A]"


def _gpus() -> list[list[str]]:
    """Name, driver and used memory of each GPU, as nvidia-smi tells them; none without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={_GPU_COLUMNS}", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
