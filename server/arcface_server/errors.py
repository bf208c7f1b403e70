"""The errors of running and measuring a Triton server on this machine.

::

    ArcFaceError
    └── LocalServerError
        ├── TritonNotInstalledError   this machine or environment has no tritonserver to run
        ├── FlagError (ValueError)    a flag for tritonserver that this package sets itself
        ├── RepositoryError           the model repository is missing or holds no model
        ├── PortError                 a port is in use, or the address cannot be listened on
        ├── TritonStartError          tritonserver ended, or took too long, before it was ready
        ├── TritonDiedError           tritonserver ended on its own while it served
        └── PerfAnalyzerError         perf_analyzer cannot be had, or did not measure
"""

from __future__ import annotations

from arcface_client.errors import ArcFaceError


class LocalServerError(ArcFaceError):
    """A local server could not be run or measured."""


class TritonNotInstalledError(LocalServerError):
    """This machine or this environment has no tritonserver that could be run."""


class FlagError(LocalServerError, ValueError):
    """A flag for tritonserver is one that this package sets itself."""


class RepositoryError(LocalServerError):
    """The model repository is missing or holds no model."""


class PortError(LocalServerError):
    """A port is in use, or the address cannot be listened on."""


class TritonStartError(LocalServerError):
    """The tritonserver process ended, or took too long, before it was ready."""


class TritonDiedError(LocalServerError):
    """The tritonserver process ended on its own while it served."""


class PerfAnalyzerError(LocalServerError):
    """The program perf_analyzer cannot be had, or it did not measure."""
