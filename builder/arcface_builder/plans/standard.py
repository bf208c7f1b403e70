"""What plans of an ONNX model are held against: its source model, as far as that is at hand, and itself."""

from __future__ import annotations

import logging
from contextlib import closing

from arcface_client.contract import INPUT_NAME, Crops
from arcface_client.errors import ArcFaceError
from arcface_client.runtimes.base import Embed
from arcface_client.runtimes.onnxruntime import OnnxRuntime

from ..graph import session
from ..onnx_version import OnnxVersion
from ..reference import ReferenceEmbedder
from ..sources import Source
from .gate import Standard, another_model, gate_crops, standard_of

_log = logging.getLogger(__name__)


def plan_standard(onnx: OnnxVersion, source: Source | None, real_crops: Crops | None) -> Standard:
    """Run the source model and the served one; it takes as long as some hundred crops take on a CPU.

    Args:
        onnx: The served model.
        source: Its source model; None leaves the served one alone.
        real_crops: uint8 [N, 112, 112, 3]; generated ones fill them up.
    """
    another = session(another_model(onnx.content))
    with closing(OnnxRuntime(onnx.path)) as served:
        embed, name = _source(onnx, source, served.embed)
        return standard_of(
            embed,
            served.embed,
            lambda crops: another.run(None, {INPUT_NAME: crops})[0],
            gate_crops(real_crops),
            compared_with=name,
        )


def _source(onnx: OnnxVersion, source: Source | None, served: Embed) -> tuple[Embed, str]:
    """The first of the three points: the source model, or the served one where the source is not at hand."""
    if source is not None:
        try:
            model = source.load()
        except (ArcFaceError, OSError) as error:
            _log.warning("The source model is not at hand (%s); comparing with the ONNX model alone.", error)
        else:
            if model.origin.sha256 == onnx.source_sha256:
                reference = ReferenceEmbedder(model)
                return reference.embed, reference.runs
            _log.warning(
                "%s is not what the ONNX model was built from; comparing with the ONNX model alone.",
                model.origin.name,
            )
    return served, "served ONNX model"
