"""The errors of running and measuring a Triton server on this machine, grouped as in the client."""

from __future__ import annotations

from arcface_client.errors import ArcFaceError, DeploymentError, InputError


class LocalServerError(ArcFaceError):
    """A local server could not be run or measured."""


class TritonNotInstalledError(LocalServerError, DeploymentError):
    """This machine or environment has no tritonserver to run."""


class FlagError(LocalServerError, InputError):
    """This package sets one of the flags for tritonserver itself."""


class RepositoryError(LocalServerError, DeploymentError):
    """The model repository is missing or holds no model."""


class PortError(LocalServerError, DeploymentError):
    """A port is in use, or the address cannot be listened on."""


class TritonStartError(LocalServerError, DeploymentError):
    """The tritonserver process ended, or was not ready in time."""


class TritonDiedError(LocalServerError, DeploymentError):
    """The tritonserver process ended on its own while it served."""


class PerfAnalyzerError(LocalServerError, DeploymentError):
    """The program perf_analyzer cannot be found, or it failed."""
