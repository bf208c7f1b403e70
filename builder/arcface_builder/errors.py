"""The builder's errors; ``InputError`` and ``DeploymentError`` say who has to act, as in the client."""

from __future__ import annotations

from arcface_client.errors import ArcFaceError, DeploymentError, InputError


class BuilderError(ArcFaceError):
    """Base of the builder's errors."""


class SourceError(BuilderError, InputError):
    """The source of a build cannot be used: fix or replace it; nothing was written."""


class NotOnnxError(SourceError):
    """A file is not an ONNX model, or is damaged."""


class NotArcFaceError(SourceError):
    """An ONNX model is not a face network, or ONNX Runtime does not run it."""


class CheckpointError(SourceError):
    """A checkpoint is not the state dict of an IResNet."""


class OptionError(BuilderError, InputError):
    """A model name or a serving option is out of its range."""


class PackError(BuilderError, DeploymentError):
    """An InsightFace pack is not there and cannot be fetched."""


class RepositoryError(BuilderError, DeploymentError):
    """A model repository cannot be read or written."""


class ReleaseError(BuilderError, DeploymentError):
    """A release cannot be promoted, rolled back or retired; the one in use goes on."""


class CacheError(BuilderError, DeploymentError):
    """The local cache cannot be read or written."""


class BucketError(BuilderError, DeploymentError):
    """S3 refused a request or did not answer; the message has the bucket, the key and S3's own words."""


class PlanDamagedError(BuilderError, DeploymentError):
    """A plan's bytes are not those of its manifest, or the manifest cannot be used: compile it again."""


class CompileError(BuilderError, DeploymentError):
    """A TensorRT plan could not be built, or must not be used."""


class NoGpuError(CompileError):
    """This machine cannot build plans: it has no GPU, no TensorRT, or too old a driver."""


class WorkspaceError(CompileError):
    """TensorRT ran out of memory, whatever the workspace."""


class PrecisionError(CompileError):
    """A plan does not run in the precision that it is named after."""


class ParityError(BuilderError, DeploymentError):
    """A model's embeddings differ from the source model's."""


class ServedModelError(ParityError):
    """A served ONNX model is wrong, or embeds everything alike, so that no plan of it can pass."""


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Check a setting; raises OptionError."""
    if not low <= value <= high:
        raise OptionError(f"{name} is {value}; expected {low} to {high}.")
