"""What a new pod waits for on a CPU: download, load, warm-up, first embedding; what a node's cache saves.

An IResNet with synthetic weights is published to an S3 that speaks HTTP on this machine.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import boto3
from moto.server import ThreadedMotoServer

from arcface_builder.build import build
from arcface_builder.cli.app import main as builder
from arcface_builder.source.load import Synthetic
from arcface_client import EmbeddingClient
from arcface_client.evaluation.samples import generated_samples
from arcface_client.models.naming import onnx_model, sibling_model
from arcface_server import LocalTriton
from script import network, usual_flags, write

NAME: Final = "arcface"
BUCKET: Final = "models"
MODELS: Final = {"ONNX Runtime": onnx_model(NAME), "OpenVINO": sibling_model(NAME, "openvino")}

EMPTY: Final = "pull into an empty folder"
CACHED: Final = "pull into a folder that has it"
DIRECT: Final = "Triton reads the bucket"
BEGINNINGS: Final = (EMPTY, CACHED, DIRECT)

NOTE: Final = (
    "Seconds; medians of {turns} turns. Download: `arcface-builder pull`, from the start of the program, of "
    "both models ({megabytes:,.0f} MB) from an S3 (moto) on the same machine: the network is the loopback, "
    "and what is read from the disk is in memory already. Triton reads from the bucket only the model that "
    "it loads. Load: tritonserver with the one model, from its start until it is ready, without the warm-up "
    "by one crop. First embedding: one crop, by a client that has to connect. Load average at the end: "
    "{load:.1f}."
)

_LOGGED: Final = re.compile(
    r"^I\d{4} (\d\d:\d\d:\d\d\.\d+) .*(running warmup sample|successfully loaded)", re.M
)


def main() -> int:
    """Run the benchmark, and write its JSON."""
    parser = usual_flags(__doc__)
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    # Moto takes any keys; those of the user have no business here.
    os.environ.update(
        AWS_ACCESS_KEY_ID="someone", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1"
    )
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    try:
        with tempfile.TemporaryDirectory() as folder:
            megabytes = _publish(Path(folder, "built"), arguments.depth, endpoint)
            taken = _measure(Path(folder, "pulled"), endpoint, arguments.turns)
    finally:
        server.stop()
    note = NOTE.format(turns=arguments.turns, megabytes=megabytes, load=os.getloadavg()[0])
    table = {
        "title": f"What a new pod waits for: {network(arguments.depth)} on a CPU",
        "note": note,
        "rows": [_row(*kind, turns) for kind, turns in taken.items()],
    }
    write(arguments.output, "pod", tables=[table])
    return 0


def _publish(repository: Path, depth: str, endpoint: str) -> float:
    """Build the family and put it into the bucket; returns its megabytes."""
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
    build(Synthetic(depth), name=NAME, repository=repository)
    place = [f"--name={NAME}", f"--repository={repository}"]
    for command in (
        ["compile", *place, "--runtime=openvino"],
        ["publish", f"s3://{BUCKET}/faces", *place, f"--endpoint-url={endpoint}"],
    ):
        if builder(command):
            raise SystemExit(1)
    return sum(path.stat().st_size for path in repository.rglob("*")) / 1e6


def _measure(folder: Path, endpoint: str, turns: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Start a pod in every way, in alternation; gives the seconds of each step by runtime and way."""
    taken: dict[tuple[str, str], list[dict[str, float]]] = {
        (runtime, beginning): [] for runtime in MODELS for beginning in BEGINNINGS
    }
    log = folder.with_suffix(".log")
    for _ in range(turns):
        for (runtime, beginning), own in taken.items():
            if beginning == EMPTY:
                shutil.rmtree(folder, ignore_errors=True)
            pull_s = 0.0 if beginning == DIRECT else _pull(folder, endpoint)
            repository = f"s3://{endpoint}/{BUCKET}/faces" if beginning == DIRECT else folder
            own.append({"download": pull_s, **_serve(repository, MODELS[runtime], log)})
    return taken


def _pull(folder: Path, endpoint: str) -> float:
    """Pull as an init container does; returns seconds."""
    program = str(Path(sys.executable).with_name("arcface-builder"))
    place = [f"--name={NAME}", f"--repository={folder}", f"--endpoint-url={endpoint}"]
    began = time.perf_counter()
    subprocess.run([program, "pull", f"s3://{BUCKET}/faces", *place], check=True, capture_output=True)
    return time.perf_counter() - began


def _serve(repository: str | Path, model: str, log: Path) -> dict[str, float]:
    """Start a server and embed a crop twice; gives the seconds of each step."""
    crops = generated_samples(1).crops
    flags = ["--model-control-mode=explicit", f"--load-model={model}", "--log-verbose=1"]
    began = time.perf_counter()
    with (
        LocalTriton(repository, flags=flags, log_path=log) as server,
        EmbeddingClient(server.grpc_url, model) as client,
    ):
        ready = time.perf_counter()
        client.encode(crops)
        first = time.perf_counter()
        client.encode(crops)
        second = time.perf_counter()
    warm_up = _warm_up_s(log.read_text())
    return {
        "load": ready - began - warm_up,
        "warm-up": warm_up,
        "first": first - ready,
        "second": second - first,
    }


def _warm_up_s(log: str) -> float:
    """How long the model's warm-up took, by the server's log."""
    began, ended = (datetime.strptime(time_of, "%H:%M:%S.%f") for time_of, _ in _LOGGED.findall(log))
    return (ended - began) % timedelta(days=1) / timedelta(seconds=1)


def _row(runtime: str, beginning: str, turns: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    middle = {step: statistics.median(turn[step] for turn in turns) for step in turns[0]}
    waited = [sum(turn.values()) - turn["second"] for turn in turns]
    return {
        "runtime": runtime,
        "models": beginning,
        "download": "in the load" if beginning == DIRECT else round(middle["download"], 1),
        "load": round(middle["load"], 1),
        "warm-up": round(middle["warm-up"], 2),
        "first embedding": round(middle["first"], 2),
        "second": round(middle["second"], 2),
        "until the first embedding": round(statistics.median(waited), 1),
    }


if __name__ == "__main__":
    sys.exit(main())
