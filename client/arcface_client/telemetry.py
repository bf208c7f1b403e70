"""ONNX Runtime's telemetry, off: a face pipeline sends nothing unasked."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "ORT_DISABLE_TELEMETRY"


def switch_off_telemetry() -> None:
    """Keep an ONNX Runtime that is imported later from recording what it runs and sending it to its maker.

    Version 1.32 does so on Linux too: it notes paths and models in ``~/.cache/Microsoft`` from its import on,
    when its own ``disable_telemetry_events`` cannot be called yet. Whoever set the variable keeps its value.
    """
    os.environ.setdefault(VARIABLE, "1")
