"""ONNX Runtime: the serving graph on the CPU, or on another execution provider that really runs it."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _ort

from ..contract import INPUT_NAME, OUTPUT_NAME, Crops, Embeddings, check_tensors
from ..errors import DeploymentError, InputError
from .base import CPU, CUDA, ENTRIES, usable_cores

RUN_ERRORS: Final = (
    _ort.EPFail,
    _ort.Fail,
    _ort.InvalidArgument,
    _ort.InvalidGraph,
    _ort.InvalidProtobuf,
    _ort.NotImplemented,
    _ort.RuntimeException,
    UnicodeDecodeError,
)
"""What ONNX Runtime raises; its exceptions have no base class of their own.

UnicodeDecodeError is for a message with a damaged name from the file.
"""

_TRITON_TYPES: Mapping[str, str] = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}


class OnnxRuntime:
    """A serving graph loaded with ONNX Runtime.

    Args:
        model_path: ONNX file with the contract's tensors.
        session: The file's session; None opens it on the CPU.

    Raises:
        DeploymentError: The file is missing or ONNX Runtime cannot load it.
        ContractError: The model has other tensors.
    """

    def __init__(self, model_path: str | Path, session: onnxruntime.InferenceSession | None = None) -> None:
        self._session = session or open_session(Path(model_path))
        check_tensors(
            str(model_path),
            [_spec(tensor) for tensor in self._session.get_inputs()],
            [_spec(tensor) for tensor in self._session.get_outputs()],
        )

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] unit rows out.

        Raises:
            DeploymentError: ONNX Runtime failed on the batch.
        """
        try:
            (embeddings,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: crops})
        except RUN_ERRORS as error:
            raise DeploymentError(f"ONNX Runtime failed on a batch of {len(crops)}: {error}") from error
        return embeddings  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the session."""
        del self._session


def open_session(
    path: Path,
    *,
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
    provider: str | tuple[str, Mapping[str, str]] = CPU,
    entries: Mapping[str, str] | None = None,
    profile_prefix: Path | None = None,
    as_it_is: bool = False,
) -> onnxruntime.InferenceSession:
    """Load an ONNX file with any tensors.

    Args:
        path: The file.
        intra_op_threads: Threads inside one operator; 0 is one for each core of ``usable_cores``.
        inter_op_threads: Threads across operators; 0 is ONNX Runtime's choice.
        provider: Execution provider, or one with its options.
        entries: Further entries of the session's configuration, for example "session.force_spinning_stop".
        profile_prefix: Where to record which nodes run, until ``end_profiling``.
        as_it_is: Leave a graph for the CPU as its file has it. Otherwise PRelu is rewritten where that is
            faster (see ``prelu``), if the package onnx is installed.

    Raises:
        DeploymentError: The file is missing or ONNX Runtime cannot load it.
    """
    if not path.is_file():
        raise DeploymentError(f"No model file at {path}; build one with `arcface-builder build`.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: its warnings say nothing to who runs a model
    # By default ONNX Runtime pins each thread to a core, where it waits as long as another process, such as
    # Triton, uses that core. With an explicit number threads are not pinned.
    options.intra_op_num_threads = intra_op_threads or usable_cores()
    options.inter_op_num_threads = inter_op_threads
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    try:
        # By default a failing provider is replaced by the CPU, with no more than a line on standard output.
        model = None if as_it_is or provider != CPU else _without_prelu(path)
        session = onnxruntime.InferenceSession(
            model or path, options, providers=[provider], enable_fallback=0
        )
    except (*RUN_ERRORS, RuntimeError, ValueError) as error:
        raise DeploymentError(f"ONNX Runtime cannot load {path}: {error}") from error
    session.disable_fallback()
    return session


def open_on(
    provider: str,
    path: Path,
    *,
    options: Mapping[str, str],
    try_out: Callable[[onnxruntime.InferenceSession], object],
    as_it_is: bool = False,
) -> onnxruntime.InferenceSession:
    """Load an ONNX file on one execution provider, and check that this provider does the computing.

    ONNX Runtime drops a provider that cannot start, and gives the CPU each node that a provider does not
    take, both without an error. So the session's providers and the nodes of a trial run are checked.

    Args:
        provider: The provider.
        path: The file.
        options: The provider's options.
        try_out: Runs the session once.
        as_it_is: As for ``open_session``.

    Raises:
        InputError: There is no provider of that name.
        DeploymentError: The file cannot be loaded, or the provider does not run it.
    """
    known, available = onnxruntime.get_all_providers(), onnxruntime.get_available_providers()
    if provider not in known:
        raise InputError(
            f"Execution provider {provider!r} is unknown; ONNX Runtime knows {', '.join(known)}."
        )
    if provider not in available:
        raise DeploymentError(
            f"The installed ONNX Runtime {onnxruntime.__version__} lacks {provider}; it has "
            f"{', '.join(available)}. Install the build that has it (for CUDA: onnxruntime-gpu in place of "
            "onnxruntime)."
        )
    if provider == CPU:
        return open_session(path, entries=ENTRIES, as_it_is=as_it_is)
    if provider == CUDA and hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        # CUDA and cuDNN of NVIDIA's pip packages, where ONNX Runtime does not look by itself.
        with redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls(directory="")
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "nodes")
        session = open_session(path, provider=(provider, options), entries=ENTRIES, profile_prefix=prefix)
        if provider not in session.get_providers():
            session.end_profiling()
            raise DeploymentError(
                f"ONNX Runtime could not start {provider} and took {', '.join(session.get_providers())} "
                "instead; its log on standard error says what is missing."
            )
        try:
            try_out(session)
        except RUN_ERRORS as error:  # the first run allocates the GPU's memory
            raise DeploymentError(
                f"ONNX Runtime loads {path} on {provider}, but cannot run it: {error}"
            ) from error
        finally:
            nodes = _nodes_by_provider(Path(session.end_profiling()))
    if 2 * nodes[provider] <= nodes.total():
        raise DeploymentError(
            f"{provider} took {nodes[provider]} of the model's {nodes.total()} nodes; ONNX Runtime ran the "
            f"others on {', '.join(sorted(nodes.keys() - {provider}))}."
        )
    return session


def _without_prelu(path: Path) -> bytes | None:
    if importlib.util.find_spec("onnx") is None:
        return None
    from .prelu import without_prelu

    return without_prelu(path)


def _nodes_by_provider(profile: Path) -> Counter[str]:
    events = json.loads(profile.read_text(encoding="utf-8"))
    return Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and "provider" in event["args"]
    )


def _spec(tensor: onnxruntime.NodeArg) -> tuple[str, str, tuple[int, ...]]:
    # A batch dimension that is fixed to a number stays in the shape, which then breaks the contract.
    batch, *rest = tensor.shape or [None]
    shape = rest if not isinstance(batch, int) else tensor.shape
    return tensor.name, _TRITON_TYPES.get(tensor.type, tensor.type), tuple(shape)
