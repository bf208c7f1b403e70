"""ONNX Runtime: the serving graph on CPU, or on whatever its providers reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from ..contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings, check_tensors
from ..errors import DeploymentError
from .providers import CPU
from .sessions import RUN_ERRORS, Provider, open_session

_TRITON_TYPES: Mapping[str, str] = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}


class OnnxRuntime:
    """A serving graph loaded with ONNX Runtime.

    Args:
        model_path: ONNX file with the contract's tensors.
        intra_op_threads: Threads inside one operator; 0 is one for each physical core that this process
            may use.
        inter_op_threads: Threads across operators; 0 is ONNX Runtime's choice.
        providers: Execution providers in order of preference.
        entries: Further entries of ONNX Runtime's session configuration ("session.force_spinning_stop").
        session: The file's session where it is open already; then nothing of the above counts.

    Raises:
        DeploymentError: The file is missing or ONNX Runtime cannot load it.
        ContractError: The model has other tensors.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
        providers: Sequence[Provider] = (CPU,),
        entries: Mapping[str, str] | None = None,
        session: onnxruntime.InferenceSession | None = None,
    ) -> None:
        self._session = session or open_session(
            Path(model_path),
            intra_op_threads=intra_op_threads,
            inter_op_threads=inter_op_threads,
            providers=providers,
            entries=entries,
        )
        check_tensors(
            str(model_path),
            [_spec(tensor) for tensor in self._session.get_inputs()],
            [_spec(tensor) for tensor in self._session.get_outputs()],
        )

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, 512] unit rows out.

        Raises:
            DeploymentError: ONNX Runtime failed on it.
        """
        try:
            (embeddings,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: crops})
        except RUN_ERRORS as error:
            raise DeploymentError(f"ONNX Runtime failed on a batch of {len(crops)}: {error}") from error
        return embeddings  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the session."""
        del self._session


def _spec(tensor: onnxruntime.NodeArg) -> tuple[str, str, tuple[int, ...]]:
    # A batch dimension that is fixed to a number is no batch dimension: it stays and breaks the contract.
    batch, *rest = tensor.shape
    shape = rest if not isinstance(batch, int) else tensor.shape
    return tensor.name, _TRITON_TYPES.get(tensor.type, tensor.type), tuple(shape)
