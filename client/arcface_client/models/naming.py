"""The names of a family's models: ``{name}_onnx``, and the siblings that are made from it, one a runtime."""

from __future__ import annotations

from typing import Final

DEFAULT_MODEL: Final = "arcface_r100_onnx"

_ONNX: Final = "_onnx"
_PLANS: Final = "_trt"
_SIBLINGS: Final = ("_cudnn", _PLANS, "_openvino")
"""The fastest first. What a host cannot run is not ready there, so the order is the same for all hosts."""

SERVER_CONFIG: Final = "arcface-server"
"""What ``arcface-server`` gives Triton as ``--model-config-name``: where a model has
``configs/arcface-server.pbtxt``, that stands in for its ``config.pbtxt``."""


def onnx_model(name: str) -> str:
    """The ONNX model of a family."""
    return name + _ONNX


def plan_model(name: str) -> str:
    """The model of a family's plans."""
    return name + _PLANS


def sibling_model(name: str, runtime: str) -> str:
    """The sibling for a runtime, for example "openvino"."""
    return f"{name}_{runtime}"


def family_models(name: str) -> tuple[str, ...]:
    """All models of a family, the one to prefer first."""
    return (*(name + suffix for suffix in _SIBLINGS), onnx_model(name))


def family(model: str) -> str:
    """The family of a model; a name without a known suffix stays as it is."""
    suffix = next((suffix for suffix in (*_SIBLINGS, _ONNX) if model.endswith(suffix)), "")
    return model.removesuffix(suffix)


def is_plan(model: str) -> bool:
    """Whether a model has plans, by its name."""
    return model.endswith(_PLANS)


def made_from(model: str) -> str | None:
    """The ONNX model that a sibling is made from; None for another model."""
    return onnx_model(family(model)) if model.endswith(_SIBLINGS) else None
