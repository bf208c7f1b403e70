"""Triton's configuration of a model of TensorRT plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tritonclient.grpc import model_config_pb2

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, INPUT_NAME, OUTPUT_NAME

DEFAULT_INSTANCES: Final = 2
"""Copies side by side on each GPU: one copies in while the other computes."""

_FULL_BATCH: Final = "full_batch"


def plan_config(
    model: str,
    *,
    filenames: Mapping[str, str],
    versions: Sequence[int],
    max_batch_size: int,
    profiles: int,
    instances: int | None = None,
    old: Any | None = None,
) -> Any:
    """Make the complete configuration, nothing left to auto-completion.

    There is no ``default_model_filename``: Triton then looks for ``model.plan``, which is never there, so
    that a GPU outside the map fails to load, loudly, and clients use the ONNX sibling.

    Args:
        model: Name of the model, which is the name of its folder.
        filenames: Plan's file name by compute capability, as "8.6"; all versions share it.
        versions: The versions to serve.
        max_batch_size: Largest batch that all their plans take.
        profiles: Optimisation profiles that all of them have; Triton takes the one whose tuned batch is the
            nearest, as ``arcface_client.runtimes.profiles`` does.
        instances: Copies side by side on each GPU; None is what the old configuration has, or 2.
        old: The configuration until now, if there is one: what does not follow from the plans stays as an
            operator left it.

    Returns:
        A ``model_config_pb2.ModelConfig``.
    """
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(_defaults(model) if old is None else old)
    config.max_batch_size = max_batch_size
    config.cc_model_filenames.clear()
    config.cc_model_filenames.update(filenames)
    config.version_policy.specific.versions[:] = sorted(versions)
    for group in config.instance_group:
        group.profile[:] = map(str, range(profiles))
        if instances is not None:
            group.count = instances
    for warmup in config.model_warmup:
        if warmup.name == _FULL_BATCH:
            warmup.batch_size = max_batch_size
    return config


def what_shrinks(old: Any, new: Any) -> list[str]:
    """Sentences on what all plans of a model lose because a new one has less of it."""
    shrinks = []
    if new.max_batch_size < old.max_batch_size:
        shrinks.append(
            f"Batches of up to {new.max_batch_size} are served from now on, not {old.max_batch_size}, on all "
            "GPUs: not every plan takes more."
        )
    few, many = (
        min((len(group.profile) for group in config.instance_group), default=0) for config in (new, old)
    )
    if few < many:
        shrinks.append("The profile for few crops is not used any more, on all GPUs: not every plan has it.")
    return shrinks


def _defaults(model: str) -> Any:
    """What does not follow from the plans."""
    pb = model_config_pb2
    config = pb.ModelConfig(name=model, platform="tensorrt_plan", backend="tensorrt")
    config.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=CROP_SHAPE)
    config.output.add(name=OUTPUT_NAME, data_type=pb.TYPE_FP32, dims=[EMBEDDING_DIM])
    # Set even if it is 0: the message being there is what switches batching on.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.instance_group.add(name="gpu", kind="KIND_GPU", count=DEFAULT_INSTANCES)
    # A graph is recorded for batch 1 and for the largest; other sizes run without. The largest does not fit
    # the profile for few crops: Triton says so in its log at each start, and serves.
    config.optimization.cuda.graphs = True
    config.optimization.cuda.output_copy_stream = True
    for name in ("one_crop", _FULL_BATCH):
        warmup = config.model_warmup.add(name=name, batch_size=1)
        warmup.inputs[INPUT_NAME].data_type = pb.TYPE_UINT8
        warmup.inputs[INPUT_NAME].dims.extend(CROP_SHAPE)
        warmup.inputs[INPUT_NAME].random_data = True
    return config
