"""What TensorRT's versions can do, and how TensorRT starts."""

from __future__ import annotations

import pytest

from arcface_builder.errors import PrecisionError
from arcface_builder.trt import compat
from support import children

GARBAGE = """
import faulthandler, gc, sys
import tensorrt_rtx as trt
from arcface_builder.trt import compat

class Collecting(compat.Messages):
    def warn(self, text):
        gc.collect()  # as may happen anywhere in Python
        super().warn(text)

faulthandler.dump_traceback_later(60, exit=True)
gc.disable()
old = trt.Logger()
garbage = [trt.Builder(old), trt.Runtime(old)]
garbage.append(garbage)
del garbage
messages = Collecting()
compat.started(trt, getattr(trt, sys.argv[1]), compat.logger(trt, messages), messages)
print("started")
"""


@pytest.mark.parametrize("start", ["Builder", "Runtime"])
def test_what_python_has_not_freed_yet_cannot_lock_tensorrt(start: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert children.run(GARBAGE, start) == "started\n"


@pytest.mark.parametrize(
    ("version", "typed", "compatible", "opset"),
    [
        ("8.5.3.1", False, False, 17),
        ("10.0.0b6", True, False, None),
        ("10.8.0.43", True, False, None),
        ("10.9.0.34", True, True, None),
        ("11.1.0.106", True, True, None),
        ("1.7.1.116", True, True, None),
    ],
)
def test_the_version_says_what_tensorrt_can_do(
    version: str, typed: bool, compatible: bool, opset: int | None
) -> None:
    assert compat.is_strongly_typed(version) is typed
    assert compat.can_be_hardware_compatible(version) is compatible
    assert compat.newest_opset(version) == opset


def test_bf16_needs_tensorrt_10() -> None:
    compat.check_knows("10.0.1", "bf16")
    with pytest.raises(PrecisionError, match=r"TensorRT 8\.5\.3\.1 has no bf16; use fp16"):
        compat.check_knows("8.5.3.1", "bf16")
