"""The builder's errors, grouped by what the caller should do.

::

    ArcFaceError
    └── BuilderError
        ├── SourceError (InputError)           mend or replace the source; nothing was written
        │   ├── NotOnnxError                   a file that is no ONNX model, or a damaged one
        │   ├── NotArcFaceError                an ONNX model that is no ArcFace, or cannot be served as one
        │   └── CheckpointError                a state dict that is no IResNet's
        ├── OptionError (InputError)           a name or serving option out of its range
        ├── PackError (DeploymentError)        an InsightFace pack that is not there and cannot be fetched
        ├── RepositoryError (DeploymentError)  a repository that cannot be read or written
        └── ParityError                        the serving graph differs from its source
"""

from __future__ import annotations

from arcface_client.errors import ArcFaceError, DeploymentError, InputError


class BuilderError(ArcFaceError):
    """Base of the builder's errors."""


class SourceError(BuilderError, InputError):
    """The source of a build cannot be used."""


class NotOnnxError(SourceError):
    """A file is no ONNX model, or a damaged one."""


class NotArcFaceError(SourceError):
    """An ONNX model is no ArcFace, or one that cannot be made into a serving graph."""


class CheckpointError(SourceError):
    """A checkpoint is not the state dict of an IResNet."""


class OptionError(BuilderError, InputError):
    """A model name or a serving option is out of its range."""


class PackError(BuilderError, DeploymentError):
    """An InsightFace pack is not there and cannot be fetched."""


class RepositoryError(BuilderError, DeploymentError):
    """A model repository cannot be read or written."""


class ParityError(BuilderError):
    """The serving graph's embeddings differ from the source model's."""
