"""A long build in another thread: how far it is, and how it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from arcface_builder.graph.precision import typed_graph
from arcface_builder.trt.progress import Phases, run_interruptibly


def test_an_error_of_the_work_is_raised_where_it_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise MemoryError("of the host")

    with pytest.raises(MemoryError, match="of the host"):
        run_interruptibly(work, tick=lambda: None, cancelled=threading.Event())

    assert capfd.readouterr().err == ""


UNSTOPPABLE = """
import signal
import sys
from pathlib import Path
import tensorrt_rtx as trt
from arcface_builder.trt import engine
from arcface_builder.trt.options import BuildOptions
engine.monitor = lambda *_: None  # as with TensorRT 8.5
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
try:
    graph, options = Path(sys.argv[1]).read_bytes(), BuildOptions()
    engine.build_plan(trt, graph, options, target_sm="86", report=lambda *_: print("builds", flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.faults
def test_a_build_that_cannot_be_stopped_ends_with_the_process(
    trt: ModuleType, half_graph: bytes, tmp_path: Path
) -> None:
    (tmp_path / "network.onnx").write_bytes(typed_graph(half_graph, "fp16"))
    child = subprocess.Popen(
        [sys.executable, "-c", UNSTOPPABLE, str(tmp_path / "network.onnx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "builds\n"

    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)

    assert (child.returncode, said) == (130, "")


def test_nested_phases_are_one_fraction() -> None:
    phases = Phases(threading.Event())
    phases.phase_start("build", None, 4)
    phases.step_complete("build", 0)
    phases.phase_start("tactics", "build", 10)
    assert phases.step_complete("tactics", 4)

    assert phases.now == ("tactics", (1 + 0.5) / 4)
    phases.phase_finish("tactics")
    phases.step_complete("build", 1)
    assert phases.now == ("build", 0.5)
