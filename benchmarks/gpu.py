"""cuDNN and TensorRT on this GPU against PyTorch and ONNX Runtime, alone and through Triton.

The whole benchmark takes about an hour. It can be run in parts, each of which adds to the JSON file:
--networks, --precisions and --parts choose what to measure, and --work keeps models and plans for the next
run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import gpu_report
from arcface_builder.errors import BuilderError
from arcface_builder.source.iresnet import BLOCKS
from arcface_builder.trt.gpu import Gpu, gpu_at_hand
from arcface_builder.trt.options import BuildOptions
from arcface_client.cli.terminal import FAILED
from arcface_client.errors import ArcFaceError
from gpu_engines import cpu, cudnn, make_plan, rebuild_s, served, serving_model, tensorrt
from gpu_report import Figure, Findings
from script import numbers

PARTS: Final = ("rates", "torch", "cudnn", "cpu", "engines", "rebuild", "serving")
PRECISIONS: Final = ("fp32", "tf32", "fp16", "int8")
_NOT_FOR_TORCH: Final = ("PYTHONPATH", "PYTHONHOME")  # another interpreter's packages


def main() -> int:
    """Run the benchmark, or parts of it."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    findings = gpu_report.load(arguments.output)
    try:
        with _work(arguments.work) as work:
            for _ in measure(arguments, findings, work):
                gpu_report.save(findings, arguments.output)  # so that an interrupted run loses little
    except ArcFaceError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return FAILED
    print(f"{arguments.output / gpu_report.NAME}; `make report` writes the page")
    return 0


def measure(arguments: argparse.Namespace, findings: Findings, work: Path) -> Iterator[None]:
    """Measure what the arguments choose; yields when there is something new to save."""
    gpu = None
    if {"engines", "rebuild", "serving"} & set(arguments.parts):
        gpu = gpu_at_hand()
        findings.machine |= {"GPU": gpu.name, "CUDA driver": gpu.driver_version}
        findings.machine["TensorRT"] = gpu.trt.__version__
    if "rates" in arguments.parts:
        report = _torch(arguments.torch_python)
        findings.matrix_tflops |= report["matrix_tflops"]
        yield
    for network in arguments.networks:
        if "torch" in arguments.parts:
            for flags, what in (([], "eager"), (["--compile"], "torch.compile")):
                report = _torch(arguments.torch_python, network, arguments.batches, flags)
                findings.machine |= {"PyTorch": report["torch"], "GPU": report["gpu"]}
                name = f"PyTorch {report['torch']} {what}, channels last, CUDA graph,"
                findings.add(
                    Figure(network=network, runtime=name, precision="fp16", **row) for row in report["rows"]
                )
                yield
        if "cudnn" in arguments.parts:
            figures = list(cudnn(serving_model(network, work), arguments.batches))
            findings.machine["cuDNN"] = figures[0].runtime.removeprefix("cuDNN ")
            findings.add(figures)
            yield
        if "cpu" in arguments.parts:
            findings.add(cpu(serving_model(network, work), arguments.cpu_batches))
            yield
        if gpu is not None:
            for precision in arguments.precisions:
                _plan(arguments, findings, network, precision, gpu, work)
                yield


def _plan(
    arguments: argparse.Namespace, findings: Findings, network: str, precision: str, gpu: Gpu, work: Path
) -> None:
    """Build a plan and measure it, alone and through Triton."""
    options = BuildOptions(
        precision=precision,
        max_batch_size=max(arguments.batches),
        opt_batch_size=arguments.opt_batch_size,
        timing_cache=work / f"{precision}.cache",
    )
    onnx = serving_model(network, work)
    label = f"{network} {precision} tuned for {options.tuned_for}"
    repository = work / "served" / f"{network}-{precision}-{options.tuned_for}"  # each plan has its own
    try:
        compiled = make_plan(onnx, options, gpu, work, repository=repository, max_drift=arguments.max_drift)
    except BuilderError as error:
        findings.refused[label] = str(error)
        print(f"{label}: {error}", file=sys.stderr)
        return
    findings.refused.pop(label, None)
    if "engines" in arguments.parts:
        findings.add(tensorrt(onnx, compiled, arguments.batches))
    if "rebuild" in arguments.parts:
        findings.rebuilds[label] = rebuild_s(onnx, options, gpu, max_drift=arguments.max_drift)
    if "serving" in arguments.parts:
        findings.add_served(
            served(repository, onnx, precision, arguments.served_batches, arguments.concurrency)
        )


def _torch(
    python: str, network: str | None = None, batches: Sequence[int] = (), flags: Sequence[str] = ()
) -> Any:
    command = [python, str(Path(__file__).with_name("gpu_torch.py"))]
    if network:
        command += [
            "--blocks",
            ",".join(map(str, BLOCKS[network])),
            "--batches",
            ",".join(map(str, batches)),
            *flags,
        ]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_TORCH}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ArcFaceError(f"{python} cannot be run ({error.strerror}); give --torch-python.") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ArcFaceError(f"{python} cannot run PyTorch's part ({reason}); give --torch-python.")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _work(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="arcface-bench-") as name:
        yield Path(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(known: Sequence[str]) -> dict[str, Any]:
        def read(text: str) -> tuple[str, ...]:
            unknown = set(text.split(",")) - set(known)
            if unknown:
                raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}")
            return tuple(text.split(","))

        return {"type": read, "metavar": "NAME,...", "help": f"of {','.join(known)} (default: %(default)s)"}

    parser.add_argument("--networks", default="r50,r100", **names(tuple(BLOCKS)))
    parser.add_argument("--precisions", default=",".join(PRECISIONS), **names(PRECISIONS))
    parser.add_argument("--parts", default=",".join(PARTS), **names(PARTS))
    for flag, default, what in (
        ("--batches", "1,4,8,16,32,64,128,256", "batch sizes"),
        ("--cpu-batches", "1,8,32", "batch sizes of ONNX Runtime"),
        ("--served-batches", "1,32,256", "batch sizes through Triton"),
        ("--concurrency", "1,2,4,8", "requests under way at a time, through Triton"),
    ):
        parser.add_argument(
            flag, type=numbers, default=default, metavar="N,...", help=f"{what} (default: %(default)s)"
        )
    parser.add_argument("--opt-batch-size", type=int, metavar="N", help="to tune for (default: largest)")
    parser.add_argument(
        "--max-drift",
        type=float,
        default=0.5,
        help="largest drift of a measured plan, far above the gate's (default: %(default)s)",
    )
    parser.add_argument("--torch-python", default=sys.executable, metavar="PYTHON", help="has PyTorch")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep models and plans for the next run")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/benchmarks"), metavar="DIR", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
