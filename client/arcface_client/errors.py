"""Every error this project raises on purpose, grouped by what the caller should do.

::

    ArcFaceError
    ├── InputError (ValueError)      mend what was passed in; trying again changes nothing
    │   ├── CropError                an array that is not a batch of face crops
    │   ├── ImageFileError           a file that is no readable image
    │   │   └── CropSizeError        an image that is no crop of 112x112
    │   ├── PairFileError            a file that is no set of pairs to verify
    │   └── ClientClosedError        the client was closed, before the call or during it
    ├── TransientError               try again, or elsewhere
    │   ├── ServerUnavailableError   nothing answers at the address, or it broke off
    │   ├── ServerBusyError          it answers, but its queue is full
    │   ├── ModelLoadingError        it is just loading the model
    │   ├── ModelChangedError        another version was loaded in the middle of the call
    │   ├── NoCandidateNowError      none of several candidates served, and one of them may later
    │   └── DeadlineExceededError    the answer did not come in time (a TimeoutError)
    ├── DeploymentError              mend the installation, the configuration or the server
    │   ├── ConfigError              a configuration file or variable that cannot be used
    │   ├── ManifestError            a model repository's record that is missing or cannot be true
    │   ├── MissingExtraError        an optional dependency that is not installed
    │   ├── CudaError                no GPU, a driver that is too old, or no memory left
    │   ├── ModelNotFoundError       the server, or the model repository, has no such model or version
    │   ├── ModelNotReadyError       the server has it, but could not load it
    │   ├── ContractError            a model whose tensors are not the contract's
    │   ├── DriftError               a model whose embeddings are not those of its source
    │   ├── OtherIdentityError       a model whose embeddings belong to another gallery
    │   ├── NoCandidateError         every one of several candidates was refused
    │   └── ServerError              the server failed on a request it should have served
    └── CallCancelledError           do nothing: who asked for it, cancelled it

``arcface_builder.errors`` and ``arcface_server.errors`` hang their own trees below ``ArcFaceError``,
so that a command line catches one class; each of theirs belongs to one of these groups as well. A
message gives the value, what was expected, and what to do next.
"""

from __future__ import annotations

from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


class ArcFaceError(Exception):
    """Base of every error raised on purpose."""


class InputError(ArcFaceError, ValueError):
    """What was passed in cannot be used; trying again changes nothing."""


class CropError(InputError):
    """An array is not a batch of face crops."""


class ImageFileError(InputError):
    """A file is no image that can be read."""


class CropSizeError(ImageFileError):
    """An image can be read, but has not the size of a face crop."""


class PairFileError(InputError):
    """A file is no verification set."""


class ClientClosedError(InputError):
    """The client was closed, before the call or during it."""


class TransientError(ArcFaceError):
    """The request may succeed when it is tried again, or at another server."""


class ServerUnavailableError(TransientError):
    """Nothing answers at the address, or the connection broke off."""


class ServerBusyError(TransientError):
    """The server answers, but refuses the request because its queue is full."""


class ModelLoadingError(TransientError):
    """The server is just loading, or unloading, the model."""


class NoCandidateNowError(TransientError):
    """None of several candidates served; the message lists them all. One of them may later."""


class ModelChangedError(TransientError):
    """Another version of the model was loaded in the middle of the call."""


class DeadlineExceededError(TransientError, TimeoutError):
    """The answer did not come within the time allowed."""


class DeploymentError(ArcFaceError):
    """The installation, the configuration or the server has to be mended."""


class ConfigError(DeploymentError):
    """A configuration file or environment variable cannot be used."""


class ManifestError(DeploymentError):
    """A record of a model repository is missing, or says what cannot be."""


class MissingExtraError(DeploymentError):
    """An optional dependency is not installed."""


class CudaError(DeploymentError):
    """A call of CUDA failed: no device, a driver that is too old, or no memory left."""


class ModelNotFoundError(DeploymentError):
    """The server, or the model repository, has no such model or version."""


class ModelNotReadyError(DeploymentError):
    """The server knows the model, but could not load it."""


class ContractError(DeploymentError):
    """A model's tensors are not those of the contract."""


class DriftError(DeploymentError):
    """A model's embeddings of the golden crops are not those of its source.

    Attributes:
        drift: The largest 1 - cosine similarity.
    """

    def __init__(self, message: str, drift: float) -> None:
        super().__init__(message)
        self.drift = drift


class OtherIdentityError(DeploymentError):
    """A model may be right, but its embeddings belong to another gallery."""


class NoCandidateError(DeploymentError):
    """Every one of several candidates was refused; the message lists them all, with the reasons."""


class ServerError(DeploymentError):
    """The server failed on a request that it should have served."""


class CallCancelledError(ArcFaceError):
    """Who asked for a call, cancelled it; raised where nobody waits any more."""


def detached(error: Error) -> Error:
    """Copy an error without its traceback, cause and context.

    Those hold what was in the variables of every frame, a call's crops too: for errors that are kept.
    """
    # Not by copy.copy, which calls __init__, and that may take other arguments than the message.
    copy = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    vars(copy).update(vars(error))
    return copy
