"""A network as ONNX Runtime runs it: the reference that every serving graph is compared with."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common as passes

from arcface_client.contract import CROP_SIZE, LENGTH_TOLERANCE
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotArcFaceError
from ..graph.edit import first_line, session, values_of
from ..graph.signature import Image, Output, unit_rows
from .fixes import Issue, Shapes, check_inference, fix_to_run, image_reshapes, is_random, prepare, widen

_log = logging.getLogger(__name__)

Reference = Literal["source file", "fixed copy"]
"""What computes the reference embeddings; manifests hold these words."""

_HALF_DRIFT: Final = 1e-3
"""Cosine distance between float16 and float32 of one network."""


@dataclass(frozen=True)
class Network:
    """A network that ONNX Runtime runs.

    Attributes:
        model: Its graph, prepared for editing; the chosen output is its only one.
        image: Its input.
        output: Its embedding.
        issues: What is changed in ``model``.
        runs: Whether the file itself runs, or its fixed copy.
    """

    model: ir.Model
    image: Image
    output: Output
    issues: tuple[Issue, ...]
    runs: Reference
    _session: onnxruntime.InferenceSession

    def run(self, planes: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Embed images one by one, which is the one batch size that every file supports.

        Args:
            planes: Normalised images [N, 3, 112, 112] in the network's channel order.

        Returns:
            float64 [N, D], as long as the network makes them.
        """
        feeds = [{self.image.name: self.image.prepare(one)} for one in planes]
        rows = [self._session.run([self.output.name], feed)[0] for feed in feeds]
        return np.stack([row.reshape(self.image.batch, -1)[0].astype(np.float64) for row in rows])

    @property
    def unit_length(self) -> bool:
        """Whether its embeddings have length one already."""
        lengths = np.linalg.norm(self.run(_probes()), axis=1)
        return bool(np.abs(lengths - 1).max() < LENGTH_TOLERANCE)

    @cached_property
    def reshapes(self) -> Shapes:
        """The shapes of what goes into and comes out of its Reshape nodes in a run."""
        nodes = image_reshapes(self.model)
        values = [value for node in nodes for value in (node.inputs[0], node.outputs[0])]
        names = list({str(value.name): None for value in values if value is not None and value.producer()})
        if not names:
            return {}
        feeds = {self.image.name: self.image.prepare(_probes()[0])}
        return {
            name: array.shape for name, array in zip(names, values_of(self.model, names, feeds), strict=True)
        }


def open_network(proto: onnx.ModelProto, output: str | None = None) -> Network:
    """Open a network: the file itself, or a copy with what keeps ONNX Runtime from running it fixed.

    The copy cannot prove its own fixes, so that it is the reference is a warning. A network in float16 is
    computed in float32, if that gives the same embeddings but for the rounding. The output that is the
    embedding is found by its shape, unless it is named.

    Raises:
        NotArcFaceError: It is not a face network, is in training mode, or cannot be run.
        OptionError: It has no output of that name.
    """
    model = ir.from_proto(proto)
    check_inference(model)
    issues = prepare(model)
    try:
        network = _opened(model, proto.SerializeToString(), output)
    except RUN_ERRORS as error:
        fixes = fix_to_run(model)
        if not fixes:
            raise _cannot_run(error) from error
        try:
            network = _opened(model, model, output)
        except RUN_ERRORS:
            raise _cannot_run(error) from error
        network = _fixed_copy(network, fixes)
    return _widened(replace(network, issues=(*issues, *network.issues)))


def _opened(model: ir.Model, file: ir.Model | bytes, name: str | None) -> Network:
    """Run a model, or the file that it was read from, on two images; raises one of ``RUN_ERRORS``."""
    layouts = Image.of(model)
    running = session(file)
    names = [node.name for node in running.get_outputs()]
    for image in layouts:
        try:
            first, second, again = (
                dict(zip(names, running.run(None, {image.name: image.prepare(one)}), strict=True))
                for one in (*_probes(), _probes()[1])
            )
            break
        except RUN_ERRORS:
            if image is layouts[-1]:
                raise
    output = Output.choose([first, second], image.batch, name)
    if not np.array_equal(second[output.name], again[output.name], equal_nan=True):
        raise NotArcFaceError(
            f"The model gives another embedding of the same image each time{_chance(model)}; "
            "export it again after `network.eval()`."
        )
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name == output.name][:1]
    passes.RemoveUnusedNodesPass()(model)
    return Network(model, image, output, (), "source file", running)


def _widened(network: Network) -> Network:
    """The network in float32 instead of float16, if that differs by rounding alone."""
    model = network.model.clone()
    issues = widen(model)
    if not issues:
        return network
    try:
        wide = _opened(model, model, network.output.name)
    except (NotArcFaceError, *RUN_ERRORS):
        return network
    half, full = (unit_rows(one.run(_probes())) for one in (network, wide))
    if not (1 - (half * full).sum(axis=1) <= _HALF_DRIFT).all():
        return network
    return _fixed_copy(wide, [*network.issues, *issues])


def _fixed_copy(network: Network, issues: list[Issue]) -> Network:
    problems = "; ".join(issue.problem for issue in issues if issue.when_run != "sound")
    _log.warning("The reference is a fixed copy of the source, not the file itself (%s)", problems)
    return replace(network, issues=tuple(issues), runs="fixed copy")


def _cannot_run(error: Exception) -> NotArcFaceError:
    return NotArcFaceError(
        f"ONNX Runtime cannot run the source file on one crop ({first_line(error)}), so there is nothing to "
        "serve, or to compare a build with; export it with a batch of one or a free one."
    )


def _chance(model: ir.Model) -> str:
    nodes = [f"{node.op_type} {node.name!r}" for node in model.graph.all_nodes() if is_random(node)]
    return f" ({', '.join(nodes)})" if nodes else ""


def _probes() -> npt.NDArray[np.float32]:
    """Two images. Values of 0, 1 and 2 suit bytes, normalised pixels and anything between."""
    return np.random.RandomState(0).randint(0, 3, (2, 3, CROP_SIZE, CROP_SIZE)).astype(np.float32)
