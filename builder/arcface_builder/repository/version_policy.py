"""Which versions of a plan model Triton is told to serve.

Version N holds the plans of the ONNX sibling's version N. Triton keeps one map from compute capability to
file name for all versions of a model, and when one version that it is told to serve lacks a file, loading
fails for all of them. So:

* The map is that of the newest version that has a plan for every architecture in the map until now. A new
  version is left out until its last plan has come, and the one before serves on: no part of a fleet loses its
  plans on the way.
* Served are that version and the newest before it that has files of all these names, too.
* Only plans that are gone from the disk give an architecture up, with a warning.
* All of them are by one TensorRT and for one platform: no server loads others.
"""

from __future__ import annotations

from collections.abc import Set

from ..store import PlanManifest, release_of
from .config import VERSIONS_SERVED
from .published import Plans


def serving(plans: Plans, before: Set[str]) -> tuple[dict[str, str], tuple[int, ...]]:
    """Which files to name and which versions to serve; see the module's description.

    Args:
        plans: What there is.
        before: The compute capabilities in the map until now.
    """
    leading = max(plans, key=lambda version: (len(before & plans[version].keys()), version))
    filenames, kinds = names(plans[leading]), _kinds(plans[leading])
    complete = [
        version
        for version, there in sorted(plans.items())
        if names(there).items() >= filenames.items() and _kinds(there) == kinds
    ]
    return filenames, tuple(complete[-VERSIONS_SERVED:])


def why_not(plans: Plans, filenames: dict[str, str], version: int, leading: int) -> str:
    """Why a version is not served while another one leads."""
    missing = sorted(filenames.keys() - plans[version].keys(), key=release_of)
    if version < leading:
        return f"version {leading} is; compile that"
    complete = [str(number) for number, there in sorted(plans.items()) if there.keys() >= {*missing}]
    return (
        f"version {leading} serves on until version {version} has plans for {', '.join(missing)} too; "
        f"or remove version {', '.join(complete)} to give these architectures up"
    )


def names(plans: dict[str, PlanManifest]) -> dict[str, str]:
    """File names by compute capability."""
    return {capability: manifest.identity.filename for capability, manifest in plans.items()}


def _kinds(plans: dict[str, PlanManifest]) -> set[tuple[str, str]]:
    identities = [manifest.identity for manifest in plans.values()]
    return {(identity.tensorrt_version, identity.platform) for identity in identities}
