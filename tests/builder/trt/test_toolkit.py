"""Starting TensorRT in a process in which Python has not yet freed all of it."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from arcface_builder.trt.progress import run_interruptibly
from support import children

GARBAGE = """
import faulthandler, gc, sys
import tensorrt_rtx as trt
from arcface_builder.trt import compat as toolkit

class Collecting(toolkit.Messages):
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
getattr(toolkit, sys.argv[1])(trt, toolkit.logger(trt, messages), messages)
print("started")
"""


@pytest.mark.parametrize("start", ["create_builder", "create_runtime"])
def test_what_python_has_not_freed_yet_cannot_lock_tensorrt(start: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert children.run(GARBAGE, start) == "started\n"


def test_a_build_that_failed_is_freed_with_its_error() -> None:
    class Builder:
        pass

    left: list[weakref.ref[Builder]] = []

    def fail() -> None:
        builder = Builder()
        left.append(weakref.ref(builder))
        raise ValueError("no plan")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no plan"):
            run_interruptibly(fail, tick=lambda: None, cancelled=threading.Event(), stoppable=True)
        assert left[0]() is None
    finally:
        gc.enable()
