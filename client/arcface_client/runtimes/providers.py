"""Names of ONNX Runtime's execution providers, for those who choose before it is imported."""

from __future__ import annotations

from typing import Final

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
COREML: Final = "CoreMLExecutionProvider"
