"""Every error that this project raises on purpose, grouped by what the caller should do.

::

    ArcFaceError
    ├── InputError (ValueError)          fix what was passed in; trying again changes nothing
    │   ├── CropError                    an array is not a batch of face crops
    │   ├── ImageFileError               a file is not a readable image
    │   ├── PairFileError                a file is not a set of verification pairs
    │   └── ClientClosedError            the client was closed before the call or during it
    ├── TransientError                   try again, or at another server
    │   ├── ServerUnavailableError       no server answered, or the connection broke
    │   ├── ServerBusyError              the server's queue is full
    │   ├── ModelLoadingError            the server is loading or unloading the model
    │   ├── SourceUnavailableError       the disk or the bucket of the crops is away
    │   ├── ModelChangedError            another version was loaded in the middle of the call
    │   ├── NoCandidateNowError          no candidate served; at least one of them may later
    │   └── DeadlineExceededError        the time was up before the answer came (a TimeoutError)
    ├── DeploymentError                  fix the installation, the configuration or the server
    │   ├── ConfigError                  a configuration file or environment variable cannot be used
    │   ├── ManifestError                a manifest of the model repository is missing or invalid
    │   │   └── ManifestSchemaError      another version of this project wrote it
    │   ├── MissingExtraError            an optional dependency is not installed
    │   ├── CudaError                    no GPU, a driver that is too old, or no GPU memory left
    │   ├── AccessError                  the server, or a gateway before it, wants another token or key
    │   ├── RequestTooLargeError         the server, or a proxy before it, takes no request of this size
    │   ├── ModelNotFoundError           the server or the model repository lacks the model or version
    │   ├── ModelNotReadyError           the server could not load the model
    │   │   └── NotReleasedError         another version is the release
    │   ├── ContractError                a model's tensors differ from the contract's
    │   ├── DriftError                   a model's embeddings differ from its source's
    │   ├── OtherEmbeddingSpaceError     a model's embeddings are not comparable with the others'
    │   ├── NoCandidateError             every candidate was refused
    │   └── ServerError                  the server failed on a valid request
    │       └── NotFiniteError           the embeddings of some crops are NaN or infinite; it holds the others
    └── CallCancelledError               nothing to do: the caller cancelled the call

``arcface_builder.errors`` and ``arcface_server.errors`` add their own errors below ``ArcFaceError``, each in
one of these groups, so that a command line catches one class. A message gives the value, what was expected,
and what to do next.
"""

from __future__ import annotations

import importlib
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Error = TypeVar("Error", bound=BaseException)

DAMAGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow, NumPy, ONNX, zipfile and pickle raise for a file that is damaged or is something else.

Each has a few of its own besides.
"""


class ArcFaceError(Exception):
    """Base of every error raised on purpose. Other processes get it with all that it holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args, vars(self))


class InputError(ArcFaceError, ValueError):
    """What was passed in cannot be used; trying again changes nothing."""


class CropError(InputError):
    """An array is not a batch of face crops."""


class ImageFileError(InputError):
    """A file is not a readable image."""


class PairFileError(InputError):
    """A file is not a set of verification pairs."""


class ClientClosedError(InputError):
    """The client was closed before the call or during it."""


class TransientError(ArcFaceError):
    """The request may succeed when it is tried again, or at another server."""


class ServerUnavailableError(TransientError):
    """No server answered at the address, or the connection broke."""


class ServerBusyError(TransientError):
    """The server refused the request because its queue is full."""


class ModelLoadingError(TransientError):
    """The server is loading or unloading the model."""


class SourceUnavailableError(TransientError):
    """The disk or the bucket that holds the crops cannot be read now."""


class ModelChangedError(TransientError):
    """Another version of the model was loaded in the middle of the call."""


class DeadlineExceededError(TransientError, TimeoutError):
    """The time was up before the answer came."""


class DeploymentError(ArcFaceError):
    """The installation, the configuration or the server has to be fixed."""


class ConfigError(DeploymentError):
    """A configuration file or environment variable cannot be used."""


class ManifestError(DeploymentError):
    """A manifest of the model repository is missing or invalid."""


class ManifestSchemaError(ManifestError):
    """A manifest was written by another version of this project."""


class MissingExtraError(DeploymentError):
    """An optional dependency is not installed."""


class CudaError(DeploymentError):
    """A CUDA call failed: no GPU, a driver that is too old, or no GPU memory left."""


class AccessError(DeploymentError):
    """The server, or a gateway before it, wants a token or key that was not given, or another one."""


class RequestTooLargeError(DeploymentError):
    """The server, or a proxy before it, takes no request of this size."""


class ModelNotFoundError(DeploymentError):
    """The server or the model repository lacks the model or version."""


class ModelNotReadyError(DeploymentError):
    """The server could not load the model."""


class NotReleasedError(ModelNotReadyError):
    """The version does not serve because another one is the release."""


class ContractError(DeploymentError):
    """A model's tensors differ from the contract's."""


class DriftError(DeploymentError):
    """A model's embeddings of the golden crops differ from its source's.

    Attributes:
        drift: The largest cosine distance, 1 - cosine similarity.
    """

    def __init__(self, message: str, drift: float) -> None:
        super().__init__(message)
        self.drift = drift


class OtherEmbeddingSpaceError(DeploymentError):
    """A model may be right, but its embeddings cannot be compared with those of the others."""


class ServerError(DeploymentError):
    """The server failed on a valid request."""


class NotFiniteError(ServerError):
    """The embeddings of some crops are NaN or infinite.

    Attributes:
        positions: Which crops, counted from 0 in what was passed in.
        embeddings: float32 [N, D]: right for all other crops, NaN for these.
    """

    def __init__(self, model: str, positions: Sequence[int], embeddings: npt.NDArray[np.float32]) -> None:
        named = ", ".join(map(str, positions[:5]))
        more = f" and {len(positions) - 5} more" if len(positions) > 5 else ""
        super().__init__(
            f"{model} gave NaN or infinite values for the crops at {named}{more} (counted from 0); the "
            "embeddings of all others are kept. If these are faces, compare the model with its source."
        )
        self.positions = tuple(positions)
        self.embeddings = embeddings


class NoCandidateNowError(TransientError):
    """No candidate served a call; at least one of them may later.

    Attributes:
        reasons: Why each candidate did not serve, by its name.
    """

    def __init__(self, reasons: Mapping[str, ArcFaceError]) -> None:
        super().__init__(f"No candidate serves now. {_listed(reasons)}")
        self.reasons = dict(reasons)


class NoCandidateError(DeploymentError):
    """Every candidate was refused.

    Attributes:
        reasons: Why each candidate was refused, by its name.
    """

    def __init__(self, reasons: Mapping[str, ArcFaceError]) -> None:
        super().__init__(f"No candidate can serve. {_listed(reasons)}")
        self.reasons = dict(reasons)


class CallCancelledError(ArcFaceError):
    """The caller cancelled the call."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtraError: It is not installed, or cannot be loaded; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {error.name}: pip install 'arcface-triton[{extra}]'"
        ) from error
    except (ImportError, OSError) as error:  # a system library that it needs is missing, for example libGL
        raise MissingExtraError(
            f"{purpose} needs the package {module}, which is installed but cannot be loaded: {error}"
        ) from error


def detached(error: Error) -> Error:
    """Copy an error without its traceback, cause and context, so that it can be kept.

    Those keep the variables of every frame alive, a call's crops among them.
    """
    return _made_again(type(error), error.args, vars(error))


def _made_again(kind: type[Error], args: tuple[Any, ...], held: Mapping[str, Any]) -> Error:
    # Not by __init__, as copy and pickle do it: some take other arguments.
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(held)
    return error


def _listed(reasons: Mapping[str, ArcFaceError]) -> str:
    return joined(f"{name}: {error}" for name, error in reasons.items()) or "No candidate is known."


def joined(sentences: Iterable[str]) -> str:
    """Join sentences to one, with semicolons in place of their full stops."""
    return re.sub(r"(?<!\.)\.; ", "; ", "; ".join(sentences))
