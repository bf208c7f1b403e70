"""The report: docs/benchmarks/index.html and the tables of README.md and docs, from docs/benchmarks/*.json.

The page is one file that asks nothing of the network. Each part of it names the machine, the versions and the
command of its figures.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from arcface_client.evaluation.page import environment
from arcface_client.evaluation.plot import draw
from arcface_client.triton.limits import DEFAULT_MAX_DRIFT_COSINE

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "docs" / "benchmarks"
BEGIN: Final = "<!-- benchmarks: written by `make report` -->"
END: Final = "<!-- end of benchmarks -->"
PAGES: Final = {"bulk.md": ("bulk.json", "ray.json"), "kubernetes.md": ("pod.json",)}
"""Pages of docs with tables, and the JSON files that these come from."""

_README_BATCHES: Final = ("1", "8", "32", "256")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A system under one load.

    Attributes:
        load: What the load is, for example the batch size.
        fps: Faces a second.
        times_ms: Percentiles of a call's time, by their names.
        ratio: Faces a second relative to the first system of the benchmark; None if they did not take turns.
    """

    load: str
    fps: float
    times_ms: Mapping[str, float]
    ratio: float | None = None

    @property
    def speed(self) -> str:
        """The speed as the tables show it."""
        return f"{self.fps:,.1f}" + ("" if self.ratio is None else f" ({self.ratio:.2f}x)")


@dataclass(frozen=True, kw_only=True)
class System:
    """A way to embed: its points, its drift, and other facts about it by the names of their columns."""

    name: str
    points: Sequence[Point]
    drift: float
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one JSON file shows, or a part of it.

    Attributes:
        title: What was measured.
        file: The JSON file's name.
        loads: What the points' loads are, for example "batch".
        systems: What was measured; none if ``table`` has it all.
        table: Further figures: a row of headings, and the others.
        notes: What has to be known about the figures.
        about: Machine, versions and command.
    """

    title: str
    file: str
    loads: str = "batch"
    systems: Sequence[System] = ()
    table: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_loads(self) -> list[str]:
        """The loads of all systems, each once."""
        return list(dict.fromkeys(point.load for system in self.systems for point in system.points))

    def speeds(self, loads: Sequence[str]) -> list[list[str]]:
        """A row of headings and a row for each system: speeds, and the facts that any system has."""
        names = list(dict.fromkeys(name for system in self.systems for name in system.facts))
        rows = [["faces a second", *(f"{self.loads} {load}" for load in loads), *names]]
        for system in self.systems:
            found = {point.load: point.speed for point in system.points}
            cells = [found.get(load, "") for load in loads]
            rows.append([system.name, *cells, *(system.facts.get(name, "") for name in names)])
        return rows

    def times(self) -> list[list[str]]:
        """A row of headings and a row for each point: percentiles of the time of a call."""
        names = list(dict.fromkeys(n for system in self.systems for p in system.points for n in p.times_ms))
        rows = [["time of a call, ms", self.loads, *names]]
        for system in self.systems:
            for point in system.points:
                cells = [f"{point.times_ms[name]:,.2f}" if name in point.times_ms else "" for name in names]
                rows.append([system.name, point.load, *cells])
        return rows

    def plot(self) -> Any:
        """Throughput against latency, one line a system."""
        return draw(
            {
                system.name: [(point.times_ms["p50"], point.fps, point.load) for point in system.points]
                for system in self.systems
                if all("p50" in point.times_ms for point in system.points)
            },
            self.loads,
        )


def read(folder: Path) -> list[Part]:
    """Read all JSON files of a folder.

    Raises:
        ValueError: One of them is of no known kind.
    """
    return [part for file in sorted(folder.glob("*.json")) for part in _parts(file)]


def _parts(file: Path) -> list[Part]:
    data = json.loads(file.read_text())
    for key, make in (
        ("systems", _of_benchmark),
        ("measurements", _of_perf),
        ("outages_s", _of_outages),
        ("tables", _of_tables),
        ("matrix_tflops", _of_gpu),
    ):
        if key in data:
            return make(file.name, data)
    raise ValueError(f"{file} is not the JSON of a benchmark: it has only {', '.join(data)}.")


def _of_benchmark(file: str, data: dict[str, Any]) -> list[Part]:
    """What ``arcface-client benchmark`` wrote; ``title`` and ``facts`` are added by benchmarks/cpu.py."""
    systems = []
    for system in data["systems"]:
        points = [
            Point(
                load=str(figure["batch_size"]),
                fps=figure["throughput_fps"],
                times_ms={name: figure[f"{name}_ms"] for name in ("p50", "p95", "p99")},
                ratio=1.0 if figure["ratio"] is None else figure["ratio"]["median"],
            )
            for figure in system["figures"]
        ]
        facts = {
            "drift": _number(system["drift"], ".1e"),
            "cold start s": _number(system["start_s"], ".1f"),
            "host MiB": _number(system["host_mb"], ",.0f"),
            "GPU MiB": _number(system["vram_mb"], ",.0f"),
        }
        kept = {name: value for name, value in facts.items() if value}
        systems.append(System(name=system["name"], points=points, drift=system["drift"] or 0, facts=kept))
    served_by = [f"{system['name']} by {', '.join(system['served_by'])}" for system in data["systems"]]
    notes = [
        f"Served: {'; '.join(served_by)}.",
        "In brackets: relative to the first system, median of the ratios of turns that were taken in "
        f"alternation ({data['turns']} turns of {data['turn_s']:g} s). Drift: from the first system.",
        *data.get("facts", ()),
    ]
    if data["noisy"]:
        notes.append("The machine was noisy: the turns of some figures differ by more than a tenth.")
    if not data["complete"]:
        notes.append(f"Not everything was measured: {data['stopped']}.")
    title = data.get("title", f"{data['systems'][0]['name']} and others")
    about = _about(data, _machine(data["machine"]), data["versions"])
    return [Part(title=title, file=file, systems=systems, notes=notes, about=about)]


def _of_perf(file: str, data: dict[str, Any]) -> list[Part]:
    by_batch: dict[int, list[Point]] = {}
    for figure in data["measurements"]:
        times_ms = {name: figure[f"{name}_ms"] for name in ("p50", "p95", "p99")}
        load = str(figure["concurrency"] or f"{figure['request_rate']}/s")
        point = Point(load=load, fps=figure["faces_per_s"], times_ms=times_ms)
        by_batch.setdefault(figure["batch_size"], []).append(point)
    systems = [System(name=f"batch {batch}", points=points, drift=0) for batch, points in by_batch.items()]
    title = f"{data['model']} through Triton, over {data['protocol']}, shared memory: {data['shared_memory']}"
    about = _about(data, _machine(data["machine"]), data["versions"])
    return [Part(title=title, file=file, loads="requests at a time", systems=systems, about=about)]


def _of_outages(file: str, data: dict[str, Any]) -> list[Part]:
    rows = [
        [kind, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}", str(len(seconds))]
        for kind, seconds in data["outages_s"].items()
    ]
    table = [["the server is", "median s", "worst s", "outages"], *rows]
    about = _about(data, _machine(data["machine"]), data.get("versions", {}))
    return [Part(title="Outages: until another replica serves", file=file, table=table, about=about)]


def _of_tables(file: str, data: dict[str, Any]) -> list[Part]:
    """What benchmarks/growth.py, float32.py, bulk.py and pod.py wrote: rows with their figures by column."""
    about = _about(data, _machine(data["machine"]), data["versions"])
    parts = []
    for one in data["tables"]:
        rows = [
            [value if isinstance(value, str) else f"{value:,}" for value in row.values()]
            for row in one["rows"]
        ]
        table, notes = [list(one["rows"][0]), *rows], [one["note"]]
        parts.append(Part(title=one["title"], file=file, table=table, notes=notes, about=about))
    return parts


def _of_gpu(file: str, data: dict[str, Any]) -> list[Part]:
    parts = []
    about = _about({"command": "benchmarks/gpu.py"}, data["machine"].get("GPU", ""), data["machine"])
    for network in sorted({row["network"] for row in data["figures"]}):
        by_name: dict[str, list[dict[str, Any]]] = {}
        for row in data["figures"]:
            if row["network"] == network:
                by_name.setdefault(f"{row['runtime']} {row['precision']}", []).append(row)
        systems = [_gpu_system(name, rows) for name, rows in by_name.items()]
        title = f"IResNet-{network.removeprefix('r')} on a GPU, in process"
        table = _without_copies(by_name)
        parts.append(Part(title=title, file=file, systems=systems, table=table, about=about))
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(data["matrix_tflops"].items()))
    notes = [
        "Times are from crops in host memory to embeddings in host memory.",
        f"Matrix products of 8192 x 8192 by PyTorch, TFLOP/s: {rates}.",
        *(
            f"Second build, with the first one's timings: {what}, {s:.0f} s"
            for what, s in data["rebuilds"].items()
        ),
        *(f"Refused: {what}: {why}" for what, why in data["refused"].items()),
        *data["remarks"],
    ]
    parts[-1:] = [replace(part, notes=notes) for part in parts[-1:]]
    if data["served"]:
        head = ["through Triton", "called by", "shared memory", "batch", "concurrency", "faces a second"]
        table = [
            [
                f"{row['network']} {row['precision']}",
                row["caller"],
                row["shared_memory"],
                str(row["batch_size"] or ""),
                str(row["concurrency"] or ""),
                f"{row['faces_per_s']:,.0f}",
            ]
            for row in data["served"]
        ]
        parts.append(Part(title="On a GPU, through Triton", file=file, table=[head, *table], about=about))
    return parts


def _without_copies(by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Faces a second of the device alone, where that was measured."""
    found = {
        name: {
            str(row["batch"]): f"{row['device_faces_per_s']:,.0f}"
            for row in rows
            if row["device_faces_per_s"]
        }
        for name, rows in by_name.items()
    }
    batches = sorted({batch for own in found.values() for batch in own}, key=int)
    rows = [[name, *(own.get(batch, "") for batch in batches)] for name, own in found.items() if own]
    head = ["faces a second, without copies", *(f"batch {batch}" for batch in batches)]
    return [head, *rows] if rows else []


def _gpu_system(name: str, rows: Sequence[Mapping[str, Any]]) -> System:
    points = [
        Point(
            load=str(row["batch"]),
            fps=row["faces_per_s"],
            times_ms={key: row[f"{key}_ms"] for key in ("p50", "p99") if row[f"{key}_ms"] is not None},
        )
        for row in sorted(rows, key=lambda row: int(row["batch"]))
    ]
    facts = {
        "drift": _number(rows[0]["drift"], ".1e"),
        "build s": _number(rows[0]["build_s"], ".0f"),
        "GPU MiB": _number(max(row["device_mb"] or 0 for row in rows) or None, ",.0f"),
    }
    kept = {key: value for key, value in facts.items() if value}
    return System(name=name, points=points, drift=rows[0]["drift"] or 0, facts=kept)


def _about(data: Mapping[str, Any], machine: str, versions: Mapping[str, str]) -> dict[str, str]:
    texts = [f"{name} {version}" for name, version in versions.items() if name not in ("platform", "GPU")]
    return {"machine": machine, "versions": ", ".join(texts), "command": data.get("command", "")}


def _machine(machine: dict[str, Any] | str) -> str:
    if isinstance(machine, str):
        return machine
    return ", ".join(
        [machine["cpu"], f"{machine['cores']} cores", *machine["gpus"], machine["system"].partition("-")[0]]
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def to_html(parts: Sequence[Part]) -> str:
    """Write the page."""
    template = Path(__file__).with_suffix(".html").read_text()
    return environment().from_string(template).render(parts=parts)


def to_markdown(parts: Sequence[Part]) -> str:
    """Write README's tables: speeds of the systems within the tolerance."""
    texts = []
    for part in parts:
        loads = [load for load in _README_BATCHES if load in part.all_loads]
        if part.loads == "batch" and loads:
            right = [system for system in part.systems if system.drift <= DEFAULT_MAX_DRIFT_COSINE]
            header, *rows = replace(part, systems=right).speeds(loads)
            texts.append(f"{part.title} ({part.about['machine']}):\n\n{table(header, rows)}")
    return "\n\n".join(texts)


def page_markdown(parts: Sequence[Part], page: str) -> str:
    """Write the tables of a page of docs."""
    own = [part for part in parts if part.file in PAGES[page]]
    texts = [f"{part.title}:\n\n{table(part.table[0], part.table[1:])}" for part in own]
    return "\n\n".join([f"Measured on {own[0].about['machine']}.", *texts])


def with_tables(readme: str, tables: str) -> str:
    """Put the tables between README's markers.

    Raises:
        ValueError: There are no markers.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}.")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", readme)


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def main() -> int:
    """Write the page, and the tables of README and of docs."""
    parts = read(FOLDER)
    (FOLDER / "index.html").write_text(to_html(parts))
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(), to_markdown(parts)))
    for page in PAGES:
        path = ROOT / "docs" / page
        path.write_text(with_tables(path.read_text(), page_markdown(parts, page)))
    print(f"{FOLDER / 'index.html'} and {readme}: {len(parts)} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
