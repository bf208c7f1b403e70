"""A model repository on this machine: which models are there, and what is recorded of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..golden import GoldenReference
from ..identity import PrecisionClass
from ..manifests import manifest_path, plan_manifest_paths, read_onnx_record, read_plan_record

_ONNX: Final = "_onnx"
_TRT: Final = "_trt"


class LocalModels:
    """The models of a repository, and their records.

    Args:
        root: The repository's folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def golden(self, model: str, version: int) -> GoldenReference | None:
        """What a version's embeddings of the golden crops have to be.

        A ``_trt`` model is held against what its ``_onnx`` sibling of the same version was built from.

        Returns:
            None when nothing is recorded here.

        Raises:
            ManifestError: What is recorded cannot be true.
        """
        name = model.removesuffix(_TRT) + _ONNX if model.endswith(_TRT) else model
        path = manifest_path(self.root, name, version)
        if not path.is_file():
            return None
        record = read_onnx_record(path)
        if record.golden is None:
            return None
        return GoldenReference(
            record.golden,
            source_sha256=record.source_sha256,
            precision_class=self._precision_class(model, version) if model.endswith(_TRT) else "float",
            preprocessing=record.preprocessing,
        )

    def _precision_class(self, model: str, version: int) -> PrecisionClass | None:
        """Of all plans of a version; None when there are none, or of both classes."""
        paths = plan_manifest_paths(self.root, model, version)
        classes = {read_plan_record(path).precision_class for path in paths}
        return classes.pop() if len(classes) == 1 else None
