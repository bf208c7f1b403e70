"""What TensorRT says while it loads and runs a plan."""

from __future__ import annotations

import tensorrt as trt


class CollectingLogger(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's last error for our own messages, instead of printing it."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.last_error = "no reason given"

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Take a message; called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.last_error = message
