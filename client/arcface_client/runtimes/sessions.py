"""Sessions of ONNX Runtime that compute where they were told to, or say so."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _ort

from ..errors import DeploymentError, InputError
from .cores import physical_cores
from .providers import CPU, CUDA

RUN_ERRORS: Final = (
    _ort.EPFail,
    _ort.Fail,
    _ort.InvalidArgument,
    _ort.InvalidGraph,
    _ort.InvalidProtobuf,
    _ort.NotImplemented,
    _ort.RuntimeException,
)
"""What ONNX Runtime raises; its exceptions have no base class of their own."""

Provider = str | tuple[str, Mapping[str, str]]
"""An execution provider, or one with its options."""


def open_session(
    path: Path,
    *,
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
    providers: Sequence[Provider] = (CPU,),
    entries: Mapping[str, str] | None = None,
    profile_prefix: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load an ONNX file.

    Args:
        path: The file.
        intra_op_threads: Threads inside one operator; 0 is one for each physical core.
        inter_op_threads: Threads across operators; 0 is ONNX Runtime's choice.
        providers: Execution providers in order of preference.
        entries: Further entries of ONNX Runtime's session configuration.
        profile_prefix: Where to record what runs, until ``end_profiling``.

    Raises:
        DeploymentError: The file is missing or ONNX Runtime cannot load it.
    """
    if not path.is_file():
        raise DeploymentError(f"No model file at {path}; build one with `arcface-builder build`.")
    options = onnxruntime.SessionOptions()
    # ONNX Runtime's own choice pins each thread to a core, and a pinned thread waits while another
    # process, such as the server around this one, has that core. A number that is given is not pinned.
    options.intra_op_num_threads = intra_op_threads or physical_cores()
    options.inter_op_num_threads = inter_op_threads
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    try:
        # Left to itself it would go on with the CPU where a provider fails, and say so on standard output.
        session = onnxruntime.InferenceSession(path, options, providers=list(providers), enable_fallback=0)
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
    entries: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """Load an ONNX file on one execution provider, and see that it is the one that computes.

    ONNX Runtime leaves a provider that cannot start out, and gives the CPU each node that a provider does
    not take. Both are found here: by what the session has, and by what ran when it was tried out.

    Args:
        provider: The provider.
        path: The file.
        options: The provider's options.
        try_out: Runs the session once.
        entries: Further entries of ONNX Runtime's session configuration.

    Raises:
        InputError: There is no provider of that name.
        DeploymentError: The file cannot be loaded, or not on that provider.
    """
    known = onnxruntime.get_all_providers()
    if provider not in known:
        raise InputError(
            f"Execution provider {provider!r} is unknown; ONNX Runtime knows {', '.join(known)}."
        )
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise DeploymentError(
            f"ONNX Runtime {onnxruntime.__version__} is here without {provider}; it has "
            f"{', '.join(available)}. Install the build that has it (for CUDA: onnxruntime-gpu in place of "
            "onnxruntime)."
        )
    if provider == CPU:
        return open_session(path, entries=entries)
    if provider == CUDA:
        _load_cuda_libraries()
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            path,
            providers=[(provider, options)],
            entries=entries,
            profile_prefix=Path(folder, "nodes"),
        )
        if provider not in session.get_providers():
            session.end_profiling()
            raise DeploymentError(
                f"ONNX Runtime could not start {provider} and quietly took "
                f"{', '.join(session.get_providers())}; its log on standard error says what is missing."
            )
        try:
            try_out(session)
        except RUN_ERRORS as error:  # a GPU's memory is taken by the first run
            raise DeploymentError(
                f"ONNX Runtime loads {path} on {provider}, but cannot run it: {error}"
            ) from error
        finally:
            nodes = _nodes_by_provider(Path(session.end_profiling()))
    total, elsewhere = nodes.total(), nodes.total() - nodes[provider]
    if 2 * elsewhere >= total:
        raise DeploymentError(
            f"{provider} took {nodes[provider]} of the model's {total} nodes; ONNX Runtime quietly ran the "
            f"others on {', '.join(sorted(nodes.keys() - {provider}))}."
        )
    return session


def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's pip packages, where ONNX Runtime does not look by itself."""
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21
        with redirect_stdout(sys.stderr):  # where it would say what is missing
            onnxruntime.preload_dlls(directory="")


def _nodes_by_provider(profile: Path) -> Counter[str]:
    events = json.loads(profile.read_text(encoding="utf-8"))
    return Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and "provider" in event["args"]
    )
