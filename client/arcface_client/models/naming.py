"""The names of a family's models: ``{name}_onnx``, and ``{name}_trt`` for the plans built from it."""

from __future__ import annotations

from typing import Final

DEFAULT_MODEL: Final = "arcface_r100_onnx"

_ONNX: Final = "_onnx"
_PLANS: Final = "_trt"


def onnx_model(name: str) -> str:
    """The ONNX model of a family."""
    return name + _ONNX


def plan_model(name: str) -> str:
    """The model of a family's plans."""
    return name + _PLANS


def family(model: str) -> str:
    """The family of a model; a name without a known suffix stays as it is."""
    return model.removesuffix(_ONNX).removesuffix(_PLANS)


def is_plan(model: str) -> bool:
    """Whether a model has plans, by its name."""
    return model.endswith(_PLANS)


def sibling_of(model: str) -> str | None:
    """The ONNX sibling of a plan's model; None for another model."""
    return onnx_model(model.removesuffix(_PLANS)) if is_plan(model) else None
