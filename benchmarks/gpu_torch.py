"""PyTorch's part of the GPU benchmark, run by an interpreter that has PyTorch: prints JSON.

It imports only the network of this project, because TensorRT 8.5 needs CPython 3.10, which may not have
PyTorch.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from iresnet_torch import iresnet

_SECONDS = 1.0
_SIZE = 8192  # of the matrices whose product gives the GPU's rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", help="residual blocks in each stage: 3,13,30,3")
    parser.add_argument("--batches", default="1,8,32,64,128,256")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile in its default mode, by batch size"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # with more, a copy in host memory waits up to 4 ms on a busy machine
    report: dict[str, Any] = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(0)}
    if arguments.blocks:
        free, _ = torch.cuda.mem_get_info()
        network = iresnet([int(text) for text in arguments.blocks.split(",")])
        network = network.cuda().half().to(memory_format=torch.channels_last)
        report["rows"] = []
        for text in arguments.batches.split(","):
            torch._dynamo.reset()
            compiled = torch.compile(network, dynamic=False) if arguments.compile else network
            report["rows"].append(measure(compiled, int(text), free, compiled=arguments.compile))
    else:
        report["matrix_tflops"] = rates()
    print(json.dumps(report))


def measure(network: Any, batch: int, free: int, *, compiled: bool) -> dict[str, float | None]:
    """Run a batch from a CUDA graph, host to host and back to back, with copies and without.

    Args:
        network: On the GPU, in half precision, channels last.
        batch: Crops in a call.
        free: Bytes that were free before the network was there.
        compiled: Whether torch.compile compiles it at its first call.
    """
    torch.cuda.empty_cache()  # frees what another batch size left
    crops = torch.randint(0, 256, (batch, 112, 112, 3), dtype=torch.uint8)
    host_in, host_out = crops.pin_memory(), torch.empty(batch, 512).pin_memory()
    device = crops.cuda()

    def embed() -> Any:
        # [N, 112, 112, 3] seen as planes is channels last already.
        planes = device.permute(0, 3, 1, 2).half().sub_(127.5).div_(127.5)
        return torch.nn.functional.normalize(network(planes).float())

    def forward() -> None:
        device.copy_(host_in, non_blocking=True)
        host_out.copy_(embed(), non_blocking=True)

    graph, alone = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    started = time.perf_counter()
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(5):
                forward()
        stream.synchronize()
        build_s = time.perf_counter() - started
        with torch.cuda.graph(graph, stream=stream):
            forward()
        device_mb = (free - torch.cuda.mem_get_info()[0]) / 2**20
        with torch.cuda.graph(alone, stream=stream):
            embed()

        def call() -> None:
            host_in.copy_(crops)
            graph.replay()
            torch.cuda.synchronize()
            host_out.clone()

        times = timed(call)
        repeats = max(5, round(_SECONDS / times[len(times) // 2]))

        def rate(recorded: Any) -> float:
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(repeats):
                recorded.replay()
            torch.cuda.synchronize()
            return batch * repeats / (time.perf_counter() - started)

        faces_per_s, device_faces_per_s = rate(graph), rate(alone)
    return {
        "batch": batch,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "faces_per_s": faces_per_s,
        "device_faces_per_s": device_faces_per_s,
        "build_s": build_s if compiled else None,
        "device_mb": device_mb,
    }


def timed(call: Any) -> list[float]:
    """Seconds of each call, in ascending order."""
    for _ in range(5):
        call()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < 5:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return sorted(times)


def rates() -> dict[str, float]:
    """Rate of the GPU's matrix products in each precision, in TFLOP/s (int8: TOP/s)."""
    random = torch.randn(_SIZE, _SIZE, device="cuda")
    whole = torch.randint(-128, 128, (_SIZE, _SIZE), device="cuda", dtype=torch.int8)
    half = random.half()
    found = {"fp16": _rate(lambda: half @ half), "int8": _rate(lambda: torch._int_mm(whole, whole.T))}
    for precision, allowed in (("fp32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        found[precision] = _rate(lambda: random @ random)
    return found


def _rate(product: Any) -> float:
    for _ in range(3):
        product()
    torch.cuda.synchronize()
    started, repeats = time.perf_counter(), 20
    for _ in range(repeats):
        product()
    torch.cuda.synchronize()
    return 2 * _SIZE**3 * repeats / (time.perf_counter() - started) / 1e12


if __name__ == "__main__":
    main()
